"""What workers have counted that are no more, put together.

Each worker counts in files of its own, which have to stay when it ends, or the counters would fall.
A service that runs for months, with a worker that is killed now and then, would have ever more of
them, in memory. So each worker that starts adds up those that nobody writes to any longer.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.mmap_dict import MmapedDict

_LOCK = "gathering"
_NOBODY = "departed"
# The kinds of metrics of which each worker has a file. Their values may be added up as they are.
_KINDS = ("counter", "histogram")
# Longest wait of a reader, and between two looks, in seconds. Gathering takes some milliseconds.
_WAIT_SECONDS, _LOOK_SECONDS = 1.0, 0.005


def gather(folder: Path) -> None:
    """Add up the files of workers that are no more. Whoever reads the folder meanwhile waits."""
    with _locked(folder, fcntl.LOCK_EX) as locked:
        if not locked:
            return  # another one is at it, or reads: the next worker does it
        for kind in _KINDS:
            left = [path for path in folder.glob(f"{kind}_*.db") if _is_left(path)]
            if left:
                _add_up(folder / f"{kind}_{_NOBODY}.db", left)


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Read all files of a folder: nothing is there twice, or not at all."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        with _locked(folder, fcntl.LOCK_SH) as locked:
            if locked or time.monotonic() > deadline:
                yield
                return
        time.sleep(_LOOK_SECONDS)


@contextmanager
def _locked(folder: Path, kind: int) -> Iterator[bool]:
    with (folder / _LOCK).open("a") as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _is_left(path: Path) -> bool:
    """Whether the process that wrote to a file is no more."""
    pid = path.stem.rpartition("_")[2]
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # another user's process, which has the number now
    return False


def _add_up(total: Path, left: list[Path]) -> None:
    sums: dict[str, float] = defaultdict(float)
    for path in [total, *left] if total.exists() else left:
        try:
            # The library has no types for this.
            values = MmapedDict.read_all_values_from_file(path)  # type: ignore[no-untyped-call]
            for key, value, *_ in values:
                sums[key] += value
        except (struct.error, RuntimeError, ValueError):
            continue  # its process was killed while it made the file
    made = total.with_suffix(".new")
    made.unlink(missing_ok=True)
    file: Any = MmapedDict(made)  # type: ignore[no-untyped-call]
    for key, value in sums.items():
        file.write_value(key, value, 0.0)
    file.close()
    made.replace(total)
    for path in left:
        path.unlink()
