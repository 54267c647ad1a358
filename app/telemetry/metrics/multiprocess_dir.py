"""The folder in which gunicorn's workers share their counts.

Each worker counts in files of its own there, and whichever is scraped adds them all up. Files of an
earlier run would be added too, so each run of gunicorn's master has a new folder. It is removed
when the master exits or, if that was killed, at the next start.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_PREFIX = "cohort-receiver-metrics-"
_LOCK = "lock"


def base() -> Path:
    """The parent of the folders: in memory if possible, since workers write every second."""
    in_memory = Path("/dev/shm")  # noqa: S108  # nosec B108
    if sys.platform == "linux" and os.access(in_memory, os.W_OK):
        return in_memory
    return Path(tempfile.gettempdir())


def prepare(environ: MutableMapping[str, str], where: Path | None = None) -> Path:
    """Create this master's folder and name it in ``environ``; after a reload, return the same.

    The lock in it is inherited by all workers, so it shows whether any of them still counts there.
    """
    prefix = f"{_PREFIX}{os.getpid()}-"
    known = Path(environ.get(VARIABLE, ""))
    if known.name.startswith(prefix) and known.is_dir():
        return known
    where = where or base()
    _remove_abandoned(where)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # until the last process that inherited it ends
    environ[VARIABLE] = str(folder)
    return folder


def remove(folder: Path) -> None:
    """Remove a folder with all counts."""
    shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(where: Path) -> None:
    for folder in where.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # another user's, or just being created
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            remove(folder)
        finally:
            os.close(descriptor)
