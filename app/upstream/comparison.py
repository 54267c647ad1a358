"""Compare two sets of user ids that do not fit into memory.

Both are spread over files by a hash of the id; then each pair of files is compared in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import orjson

# About 10 MB of memory for each side of a pair.
_IDS_PER_FILE = 50_000
_MAX_FILES = 128
_IDS_AT_ONCE = 1000


class Compared(NamedTuple):
    """Some ids: only theirs, only ours, and the number of those that both have."""

    only_theirs: list[str]
    only_ours: list[str]
    common: int


def compare(
    theirs: Iterable[str],
    ours: Iterable[str],
    *,
    size: int,
    folder: Path,
    breathe: Callable[[], None] = lambda: None,
) -> Iterator[Compared]:
    """Compare the ids, some at a time. Those that occur twice count once.

    Args:
        size: about how many ids there are.
        folder: for temporary files: about 30 bytes for each id.
        breathe: called every few ms, to let other work of this process go on.
    """
    count = min(_MAX_FILES, 1 + size // _IDS_PER_FILE)
    first, second = folder / "theirs", folder / "ours"
    _spread(theirs, first, count, breathe)
    _spread(ours, second, count, breathe)
    for number in range(count):
        only_theirs = _read(first / str(number))
        breathe()
        common = only_theirs & (only_ours := _read(second / str(number)))
        only_theirs -= common
        only_ours -= common
        breathe()
        yield Compared(
            [orjson.loads(line) for line in only_theirs],
            [orjson.loads(line) for line in only_ours],
            len(common),
        )


def _spread(user_ids: Iterable[str], folder: Path, count: int, breathe: Callable[[], None]) -> None:
    folder.mkdir()
    user_ids = iter(user_ids)
    with ExitStack() as stack:
        files = [stack.enter_context((folder / str(n)).open("wb")) for n in range(count)]
        while some := list(islice(user_ids, _IDS_AT_ONCE)):
            for user_id in some:
                # JSON, since an id may contain a line break.
                line = orjson.dumps(user_id, option=orjson.OPT_APPEND_NEWLINE)
                files[crc32(line) % count].write(line)
            breathe()


def _read(file: Path) -> set[bytes]:
    with file.open("rb") as lines:
        return set(lines)
