"""The data folder of a run: its keys, its lock and its socket."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.embedded import CannotRun
from app.embedded.data_dir import DataDir


@pytest.fixture
def data() -> Iterator[DataDir]:
    data = DataDir(Path(tempfile.mkdtemp(prefix="data-")) / "var")
    data.create()
    yield data
    shutil.rmtree(data.path.parent)


def wait_no_more(seconds: float) -> None:
    raise TimeoutError


def no_store(socket: Path) -> None:
    raise AssertionError("no store is to be shut down")


def held_lock(data: DataDir, holders: str) -> int:
    """Lock the folder as a run of other processes would."""
    lock = data.lock(wait_no_more, no_store)
    os.ftruncate(lock, 0)
    os.pwrite(lock, holders.encode(), 0)
    return lock


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_create__new_folder__is_private(data: DataDir) -> None:
    assert stat.S_IMODE(data.path.stat().st_mode) == 0o700


def test_key__generated__is_private_and_stays_the_same(data: DataDir) -> None:
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


def test_key__file_that_others_can_read__becomes_private(data: DataDir) -> None:
    data.key("ingest")
    data.key_file("ingest").chmod(0o644)
    data.key("ingest")
    assert stat.S_IMODE(data.key_file("ingest").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"two words", b"a,b", "é".encode(), b"\xff\xfe\x00"])
def test_key__file_without_a_key__says_what_to_do(data: DataDir, content: bytes) -> None:
    data.key_file("ingest").write_bytes(content)
    with pytest.raises(CannotRun, match=r"ingest-key does not hold a key. Delete it"):
        data.key("ingest")


def test_key__empty_file_as_a_full_disk_leaves_it__is_filled(data: DataDir) -> None:
    data.key_file("ingest").touch()
    assert len(data.key("ingest")) == 64


def test_lock__held_by_another_run__names_it_and_is_free_after_it(data: DataDir) -> None:
    first = data.lock(wait_no_more, no_store)
    with pytest.raises(CannotRun, match=rf"in use by another run \(process {os.getppid()}\)"):
        data.lock(wait_no_more, no_store)
    os.close(first)
    os.close(data.lock(wait_no_more, no_store))


def test_lock__earlier_run_still_stopping__waits(data: DataDir, dead_pid: int) -> None:
    first = held_lock(data, f"{dead_pid} {os.getpid()}")
    os.close(data.lock(lambda seconds: os.close(first), no_store))


def test_lock__only_the_store_of_an_earlier_run_is_left__shuts_it_down_once(
    data: DataDir, dead_pid: int
) -> None:
    first = held_lock(data, f"{dead_pid} {dead_pid}")
    asked: list[Path] = []
    waits = iter([lambda: None, lambda: os.close(first)])
    os.close(data.lock(lambda seconds: next(waits)(), asked.append))
    assert asked == [data.socket.resolve()]


def test_lock__earlier_run_does_not_end__says_so(data: DataDir, dead_pid: int) -> None:
    first = held_lock(data, f"{dead_pid} {os.getpid()}")
    with pytest.raises(CannotRun, match=r"Processes of an earlier run still use .*/var\. Kill"):
        data.lock(wait_no_more, no_store, seconds=0)
    os.close(first)


def test_place_socket__short_path__is_in_the_folder(data: DataDir) -> None:
    assert data.place_socket() == data.path / "store.sock"
    assert not list(data.path.glob("*.probe"))


def test_place_socket__long_path__is_elsewhere_and_linked(data: DataDir) -> None:
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


def test_place_socket__temporary_folder_too_long__says_what_to_do(data: DataDir) -> None:
    deep = DataDir(data.path / ("x" * 90))
    deep.create()
    with pytest.raises(CannotRun, match="Set TMPDIR to a short path"):
        deep.place_socket(temporary=deep.path)
    assert sorted(p.name for p in deep.path.iterdir()) == ["store"]
