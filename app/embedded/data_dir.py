"""The folder that holds the data, keys, lock and socket of a run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from app.embedded import CannotRun
from app.settings import KEY

# Longer than a supervisor takes to stop everything.
LOCK_SECONDS = 15.0


class DataDir:
    """A data folder. All methods raise OSError if the disk does not allow what they do.

    Attributes:
        store: the folder of the store's own files.
        store_log: the store's log.
        socket: where the store listens, or a link to it.
        store_marks: the last known state of the store, from which the service notices lost data.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.store = self.path / "store"
        self.store_log = self.path / "store.log"
        self.socket = self.path / "store.sock"
        self.store_marks = self.path / "store-marks.json"

    def create(self) -> None:
        """Create the folder, for its owner alone."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.store.mkdir(mode=0o700, exist_ok=True)

    def key_file(self, scope: str) -> Path:
        return self.path / f"{scope}-key"

    def key(self, scope: str) -> str:
        """The key for a scope, generated the first time. Raises CannotRun."""
        path = self.key_file(scope)
        path.touch(0o600)
        key = path.read_text(errors="replace").strip()
        path.chmod(0o600)
        if not key:  # new, or the disk was full
            key = secrets.token_hex(32)
            path.write_text(f"{key}\n")
        if not KEY.fullmatch(key):
            raise CannotRun(f"{path} does not hold a key. Delete it to get a new one.")
        return key

    def lock(
        self,
        wait: Callable[[float], None],
        shut_down: Callable[[Path], None],
        seconds: float = LOCK_SECONDS,
    ) -> int:
        """Lock the folder, once all processes of earlier runs have ended.

        The store and the service inherit the lock, so the kernel releases it with the last process
        of a run, whatever killed the others: two stores never open the same files.

        Args:
            wait: sleeps for some seconds; may raise to give up.
            shut_down: asks the store on a socket to shut down.
            seconds: how long the processes of an earlier run may take to end.

        Returns:
            The descriptor to pass on.

        Raises:
            CannotRun: another run uses the folder, or processes of an earlier run do not end.
        """
        descriptor = os.open(self.path / "run.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + seconds
        asked = False
        while not _try_lock(descriptor):
            launcher, _, supervisor = os.pread(descriptor, 50, 0).decode().partition(" ")
            if _is_running(launcher):
                raise CannotRun(
                    f"{self.path} is in use by another run (process {launcher}). Stop it first, or "
                    "set DATA_DIR to another folder."
                )
            if time.monotonic() > deadline:
                raise CannotRun(
                    f"Processes of an earlier run still use {self.path}. Kill them, or set "
                    "DATA_DIR to another folder."
                )
            if not _is_running(supervisor) and not asked:
                asked = True
                shut_down(self.socket.resolve())
            wait(0.05)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getppid()} {os.getpid()}".encode(), 0)
        return descriptor

    def place_socket(self, temporary: Path | None = None) -> Path:
        """Where the store is to listen: here, or else in a temporary folder. Raises CannotRun.

        The path of a socket is limited to about 100 characters, and some shared folders do not
        support sockets.
        """
        self.remove_socket()
        if _takes_socket(self.socket):
            return self.socket
        place = Path(tempfile.mkdtemp(prefix="cohort-receiver-", dir=temporary)) / "store.sock"
        if not _takes_socket(place):
            place.parent.rmdir()
            raise CannotRun(
                f"Cannot create a socket in {place.parent.parent}. Set TMPDIR to a short path."
            )
        self.socket.symlink_to(place)
        return place

    def remove_socket(self) -> None:
        """Remove the socket of a store that has ended."""
        if self.socket.is_symlink():
            place = self.socket.readlink()
            with contextlib.suppress(OSError):
                place.unlink(missing_ok=True)
                place.parent.rmdir()
        self.socket.unlink(missing_ok=True)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass  # it belongs to another user
    return True


def _takes_socket(path: Path) -> bool:
    # A slightly longer name: the limit of some programs is lower than the kernel's.
    probe = path.with_name(f"{path.name}.probe")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(str(probe))
        except OSError:
            return False
    probe.unlink()
    return True
