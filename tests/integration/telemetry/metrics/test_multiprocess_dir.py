"""Each start of the service has a folder of its own, and removes those that nobody uses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from app.telemetry.metrics import multiprocess_dir

START = """
import sys
from pathlib import Path
from app.telemetry.metrics import multiprocess_dir
print(multiprocess_dir.prepare({}, Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def start(base: Path) -> tuple[subprocess.Popen[str], Path]:
    """Another process that has made its folder and counts there until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", START, str(base)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def test_prepare__beside_a_start_that_lives__leaves_its_folder(tmp_path: Path) -> None:
    process, theirs = start(tmp_path)
    with process:
        (theirs / "counter_1.db").touch()
        ours = multiprocess_dir.prepare({}, tmp_path)
        assert ours != theirs
        assert (theirs / "counter_1.db").exists()
        process.kill()


def test_prepare__after_a_start_was_killed__removes_its_folder(tmp_path: Path) -> None:
    process, theirs = start(tmp_path)
    with process:
        process.kill()
    assert theirs.is_dir()
    ours = multiprocess_dir.prepare({}, tmp_path)
    assert list(tmp_path.iterdir()) == [ours]


def test_prepare__again_in_the_same_process__keeps_what_was_counted(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    first = multiprocess_dir.prepare(environ, tmp_path)
    (first / "counter_1.db").touch()
    assert multiprocess_dir.prepare(environ, tmp_path) == first
    assert (first / "counter_1.db").exists()


def test_prepare__in_a_process_that_inherits_another_ones__makes_its_own(tmp_path: Path) -> None:
    process, theirs = start(tmp_path)
    with process:
        assert (
            multiprocess_dir.prepare({multiprocess_dir.VARIABLE: str(theirs)}, tmp_path) != theirs
        )
        process.kill()
