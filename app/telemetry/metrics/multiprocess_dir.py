"""The folder in which gunicorn's workers count together: a new one for each start.

Each worker keeps its numbers in files there, and whichever is asked adds them all up. What an
earlier start has left would be added too, so each start has a folder of its own; it goes when the
start ends, and at the next start where it was killed.
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
    """Where the folders are made: in memory where there is such a place, as they are written to
    with every request.
    """
    in_memory = Path("/dev/shm")  # noqa: S108  # nosec B108
    if sys.platform == "linux" and os.access(in_memory, os.W_OK):
        return in_memory
    return Path(tempfile.gettempdir())


def prepare(environ: MutableMapping[str, str]) -> Path:
    """Make this start's folder and name it in ``environ``; the same again after a reload.

    The lock in it is held by this process and by all that it starts, and so tells whether
    anybody counts there still.
    """
    prefix = f"{_PREFIX}{os.getpid()}-"
    known = Path(environ.get(VARIABLE, ""))
    if known.name.startswith(prefix) and known.is_dir():
        return known
    _remove_deserted(base())
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base()))
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # until the last process that has it ends
    environ[VARIABLE] = str(folder)
    return folder


def remove(folder: Path) -> None:
    """Remove a start's folder."""
    shutil.rmtree(folder, ignore_errors=True)


def _remove_deserted(where: Path) -> None:
    for folder in where.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # another user's, or just being made
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            remove(folder)
        finally:
            os.close(descriptor)
