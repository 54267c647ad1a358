"""The counts of exited workers are kept; their files are not."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from app.telemetry.metrics import exited_workers
from app.telemetry.metrics.multiprocess_dir import VARIABLE

COUNTS = """
from app.telemetry.metrics.meter import Meter
meter = Meter()
meter.request("GET", "/x", 200, "none", "identify", {seconds})
meter.users("identify", 5, 3, {{"unknown_user": 2}})
meter.flush()
{then}
"""


def count(folder: Path, seconds: float = 0.02, then: str = "") -> subprocess.Popen[str]:
    """Start a worker that counts one request and then ends."""
    return subprocess.Popen(
        [sys.executable, "-c", COUNTS.format(seconds=seconds, then=then)],
        env={**os.environ, VARIABLE: str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def count_and_end(folder: Path, seconds: float = 0.02) -> None:
    with count(folder, seconds) as worker:
        worker.communicate(timeout=60)
    assert worker.returncode == 0


def samples(folder: Path) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All samples of a folder."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.db")}


ACCEPTED = ("cohort_receiver_users_accepted_total", (("source", "identify"),))
TWO = {"counter_exited.db", "histogram_exited.db"}


def test_merge__of_workers_that_ended__keeps_every_number_in_two_files(tmp_path: Path) -> None:
    for seconds in (0.02, 0.3, 20):
        count_and_end(tmp_path, seconds)
    before = samples(tmp_path)
    assert before[ACCEPTED] == 15
    assert len(files(tmp_path)) == 6
    exited_workers.merge(tmp_path)
    assert files(tmp_path) == TWO
    assert samples(tmp_path) == pytest.approx(before)
    count_and_end(tmp_path)
    exited_workers.merge(tmp_path)
    exited_workers.merge(tmp_path)
    assert files(tmp_path) == TWO
    assert samples(tmp_path)[ACCEPTED] == 20


def test_merge__worker_that_lives__leaves_its_files_alone(tmp_path: Path) -> None:
    with count(tmp_path, then='print("counted", flush=True); input()') as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "counted\n"
        exited_workers.merge(tmp_path)
        assert files(tmp_path) == {f"{kind}_{worker.pid}.db" for kind in ("counter", "histogram")}
        worker.communicate("\n", timeout=60)
    exited_workers.merge(tmp_path)
    assert files(tmp_path) == TWO


def test_merge__file_that_was_only_begun__is_removed(tmp_path: Path) -> None:
    count_and_end(tmp_path)
    before = samples(tmp_path)
    other = subprocess.Popen([sys.executable, "-c", ""])
    assert other.wait(60) == 0
    (tmp_path / f"counter_{other.pid}.db").write_bytes(b"")
    exited_workers.merge(tmp_path)
    assert files(tmp_path) == TWO
    assert samples(tmp_path) == pytest.approx(before)


def test_merge__while_somebody_reads__is_left_to_the_next(tmp_path: Path) -> None:
    count_and_end(tmp_path)
    before = files(tmp_path)
    with exited_workers.reading(tmp_path):
        exited_workers.merge(tmp_path)
        assert files(tmp_path) == before
        with exited_workers.reading(tmp_path):
            pass  # two may read at a time
    exited_workers.merge(tmp_path)
    assert files(tmp_path) == TWO


def test_reading__while_somebody_merges_forever__continues_after_a_while(tmp_path: Path) -> None:
    with (tmp_path / "merge.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with exited_workers.reading(tmp_path):
            pass
