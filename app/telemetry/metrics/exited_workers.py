"""Merge the metric files of exited workers.

Each worker counts in files of its own. These have to outlive it, or the counters would fall; but
every restarted worker would leave two more files in memory. So each worker that starts merges those
of workers that have exited.
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

_LOCK = "merge.lock"
_MERGED = "exited"
# Each worker has a file per type of metric. The values of these types can be added up.
_TYPES = ("counter", "histogram")
# Longest wait of a reader for a merge, which takes some milliseconds.
_MAX_WAIT_SECONDS, _POLL_SECONDS = 1.0, 0.005


def merge(folder: Path) -> None:
    """Merge the files of exited workers. :func:`reading` waits for it."""
    with _locked(folder, fcntl.LOCK_EX) as locked:
        if not locked:
            return  # someone reads or merges: left to the next worker that starts
        for metric_type in _TYPES:
            exited = [path for path in folder.glob(f"{metric_type}_*.db") if _has_exited(path)]
            if exited:
                _merge(folder / f"{metric_type}_{_MERGED}.db", exited)


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Prevent merges during a ``with`` block that reads all files, so each value counts once."""
    deadline = time.monotonic() + _MAX_WAIT_SECONDS
    while True:
        with _locked(folder, fcntl.LOCK_SH) as locked:
            if locked or time.monotonic() > deadline:
                yield
                return
        time.sleep(_POLL_SECONDS)


@contextmanager
def _locked(folder: Path, operation: int) -> Iterator[bool]:
    with (folder / _LOCK).open("a") as file:
        try:
            fcntl.flock(file, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _has_exited(path: Path) -> bool:
    """Whether the worker whose file this is has exited."""
    pid = path.stem.rpartition("_")[2]
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # a process of another user has this id
    return False


def _merge(total: Path, exited: list[Path]) -> None:
    sums: dict[str, float] = defaultdict(float)
    for path in [total, *exited] if total.exists() else exited:
        try:
            # The library has no types for this.
            values = MmapedDict.read_all_values_from_file(path)  # type: ignore[no-untyped-call]
            for key, value, *_ in values:
                sums[key] += value
        except (struct.error, RuntimeError, ValueError):
            continue  # the worker was killed while it created the file
    new = total.with_suffix(".new")
    new.unlink(missing_ok=True)
    file: Any = MmapedDict(new)  # type: ignore[no-untyped-call]
    for key, value in sums.items():
        file.write_value(key, value, 0.0)
    file.close()
    new.replace(total)
    for path in exited:
        path.unlink()
