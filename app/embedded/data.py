"""The folder where a run keeps its data, its keys and its locks."""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from app.embedded.errors import CannotRun
from app.settings import KEY

# How long what a killed run has left behind may take to end. Its guard sees to that; if that one
# was killed too, the store is asked directly.
LEFTOVERS_SECONDS = 15.0
ASK_STORE_AFTER_SECONDS = 2.0


class DataDir:
    """A data folder and what lies in it.

    Attributes:
        store: the store's own files.
        store_log: what the store has to say.
        socket: where the store listens. A link, where the real place lies elsewhere.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.store = self.path / "store"
        self.store_log = self.path / "store.log"
        self.socket = self.path / "store.sock"

    def create(self) -> None:
        """Make the folder, for its owner alone. Raises CannotRun."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.store.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise CannotRun(f"{self.path} can't be used: {error.strerror}.") from None

    def key_file(self, scope: str) -> Path:
        """Where the key for a scope is kept."""
        return self.path / f"{scope}-key"

    def key(self, scope: str) -> str:
        """The random key for a scope, made the first time. Raises CannotRun."""
        path = self.key_file(scope)
        if not path.exists():
            _create_private(path, secrets.token_hex(32))
        path.chmod(0o600)
        key = path.read_text().strip()
        if not KEY.fullmatch(key):
            raise CannotRun(f"{path} does not hold a key. Delete it to get a new one.")
        return key

    def claim(self) -> int:
        """Make sure that no other run uses this folder. Raises CannotRun.

        Returns:
            The descriptor that holds the claim, until it is closed or this process ends.
        """
        descriptor = _open_lock(self.path / "run.lock")
        if not _lock(descriptor):
            pid = os.pread(descriptor, 20, 0).decode().strip()
            os.close(descriptor)
            raise CannotRun(
                f"{self.path} is in use by another run (process {pid or 'unknown'}). Stop that one "
                "first, or set DATA_DIR to another folder."
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor

    async def claim_store(
        self, shut_down: Callable[[Path], None], say: Callable[[str], None]
    ) -> int:
        """Wait until all processes of earlier runs have ended. Raises CannotRun.

        The store and the service inherit this second claim, so that it ends with the last of
        them, whatever became of the run that started them. Two stores must never open the same
        files.

        Args:
            shut_down: asks a store that still listens on a socket to end.
            say: prints one line.

        Returns:
            The descriptor that holds the claim, to be passed on.
        """
        descriptor = _open_lock(self.path / "processes.lock")
        began = time.monotonic()
        asked = False
        while not _lock(descriptor):
            waited = time.monotonic() - began
            if waited > LEFTOVERS_SECONDS:
                os.close(descriptor)
                raise CannotRun(
                    f"Processes of an earlier run still use {self.path}, and don't end. End them "
                    "first, or set DATA_DIR to another folder."
                )
            if waited > ASK_STORE_AFTER_SECONDS and not asked:
                asked = True  # once is enough for a store that listens at all
                say("Processes of an earlier run are still ending. Waiting for them.")
                await asyncio.to_thread(shut_down, self.socket.resolve())
            await asyncio.sleep(0.05)
        return descriptor

    def place_socket(self) -> Path:
        """Where the store shall listen: in this folder if a socket can be there at all.

        The path of a socket may have about 100 characters, and some shared folders take none.
        """
        self.remove_socket()
        if _takes_socket(self.socket):
            return self.socket
        for base in (tempfile.gettempdir(), "/tmp"):  # noqa: S108  # nosec B108
            place = Path(tempfile.mkdtemp(prefix="cohort-receiver-", dir=base)) / "store.sock"
            if _takes_socket(place):
                self.socket.symlink_to(place)
                return place
            place.parent.rmdir()
        raise CannotRun("There is no folder for the store's socket. Set TMPDIR to a short path.")

    def remove_socket(self) -> None:
        """Remove what an ended store leaves of its socket."""
        if self.socket.is_symlink():
            place = self.socket.readlink()
            place.unlink(missing_ok=True)
            if place.parent.is_dir():
                place.parent.rmdir()
        self.socket.unlink(missing_ok=True)


def _create_private(path: Path, text: str) -> None:
    """Write a new file that only its owner can read at any time; whoever is first wins."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{text}\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(name, path)
        except FileExistsError:
            return
    finally:
        os.unlink(name)


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _takes_socket(path: Path) -> bool:
    # A name that is a little longer: not every program can use the very last characters.
    probe = path.with_name(f"{path.name}.probe")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(str(probe))
        except OSError:
            return False
    probe.unlink()
    return True
