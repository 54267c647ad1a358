"""The folder of a run: its keys, its locks and its socket."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.embedded.data import DataDir
from app.embedded.errors import CannotRun


@pytest.fixture
def data() -> Iterator[DataDir]:
    data = DataDir(Path(tempfile.mkdtemp(prefix="data-")) / "var")
    data.create()
    yield data
    shutil.rmtree(data.path.parent)


def test_create__new_folder__is_its_owners_alone(data: DataDir) -> None:
    assert stat.S_IMODE(data.path.stat().st_mode) == 0o700


def test_create__file_in_the_way__says_so(tmp_path: Path) -> None:
    (tmp_path / "var").write_text("")
    with pytest.raises(CannotRun, match="can't be used: "):
        DataDir(tmp_path / "var").create()


def test_key__made__is_private_and_stays_the_same(data: DataDir) -> None:
    old = os.umask(0)
    try:
        key = data.key("ingest")
    finally:
        os.umask(old)
    assert len(key) == 64
    assert stat.S_IMODE(data.key_file("ingest").stat().st_mode) == 0o600
    assert data.key("ingest") == key
    assert data.key("admin") != key
    assert sorted(p.name for p in data.path.iterdir()) == ["admin-key", "ingest-key", "store"]


def test_key__file_that_others_can_read__is_closed_to_them(data: DataDir) -> None:
    data.key("ingest")
    data.key_file("ingest").chmod(0o644)
    data.key("ingest")
    assert stat.S_IMODE(data.key_file("ingest").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", ["", "two words", "a,b", "é"])
def test_key__file_without_a_key__says_what_to_do(data: DataDir, content: str) -> None:
    data.key_file("ingest").write_text(content)
    with pytest.raises(CannotRun, match=r"ingest-key does not hold a key. Delete it"):
        data.key("ingest")


def test_claim__held_by_another__names_it_and_is_free_after_it(data: DataDir) -> None:
    first = data.claim()
    with pytest.raises(CannotRun, match=rf"in use by another run \(process {os.getpid()}\)"):
        data.claim()
    os.close(first)
    os.close(data.claim())


def test_place_socket__short_path__lies_in_the_folder(data: DataDir) -> None:
    assert data.place_socket() == data.path / "store.sock"
    assert not list(data.path.glob("*.probe"))


def test_place_socket__long_path__lies_elsewhere_and_is_linked(data: DataDir) -> None:
    deep = DataDir(data.path / ("x" * 90))
    deep.create()
    first = deep.place_socket()
    assert len(str(first)) < 90
    assert deep.socket.readlink() == first
    assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700

    second = deep.place_socket()  # after a crash: what the last run left is cleaned up
    assert not first.parent.exists()
    deep.remove_socket()
    assert not second.parent.exists()
    assert not deep.socket.is_symlink()


def test_place_socket__temporary_folder_too_long__falls_back(
    data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = data.path / ("t" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    deep = DataDir(data.path / ("x" * 90))
    deep.create()
    assert deep.place_socket().is_relative_to("/tmp")
    assert list(long.iterdir()) == []
    deep.remove_socket()
