"""Comparing sets of user ids on disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.upstream.comparison import compare

IDS = st.sets(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5))


@given(theirs=IDS, ours=IDS, size=st.sampled_from([0, 200_000, 10**9]))
def test_compare__finds_the_difference_of_sets(theirs: set[str], ours: set[str], size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        missing: list[str] = []
        extra: list[str] = []
        common = 0
        # An id may occur twice in an export.
        for found in compare([*theirs, *theirs], ours, size=size, folder=Path(folder)):
            missing += found.only_theirs
            extra += found.only_ours
            common += found.common
    assert sorted(missing) == sorted(theirs - ours)
    assert sorted(extra) == sorted(ours - theirs)
    assert common == len(ours & theirs)


@pytest.mark.parametrize(("size", "files"), [(0, 1), (100_000, 3), (10**9, 128)])
def test_compare__of_more_ids__uses_more_files(size: int, files: int, tmp_path: Path) -> None:
    assert len(list(compare(["a"], ["b"], size=size, folder=tmp_path))) == files


def test_compare__lets_other_work_go_on(tmp_path: Path) -> None:
    pauses: list[int] = []
    ids = [str(n) for n in range(5000)]
    for _ in compare(ids, ids, size=5000, folder=tmp_path, breathe=lambda: pauses.append(1)):
        pass
    assert len(pauses) >= 10
