"""``make install``: which Python it takes, and what it does with a ``.venv`` that it cannot use."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.service import ROOT

# Creating a real environment takes seconds. This one runs what it is given as that version would,
# creates environments that hold itself, and installs packages that need Python 3.11.
PYTHON = """#!{executable}
import pathlib, shutil, sys
sys.version_info = {version}
if sys.argv[1] == "-c":
    exec(sys.argv[2])
elif sys.argv[1:3] == ["-m", "venv"]:
    folder = pathlib.Path(sys.argv[-1], "bin")
    if "--clear" in sys.argv:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("python", "pip"):
        if not (folder / name).exists():
            shutil.copy(__file__, folder / name)
elif "install" in sys.argv:
    sys.exit(sys.version_info < (3, 11))
"""
VERSIONS = {"python3.10": (3, 10, 13), "python3.12": (3, 12, 1)}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").write_text("flask==1\nredis==2\n")
    for name, version in VERSIONS.items():
        (tmp_path / name).write_text(PYTHON.format(executable=sys.executable, version=version))
        (tmp_path / name).chmod(0o755)
    return tmp_path


def install(clone: Path, python: str) -> subprocess.CompletedProcess[str]:
    # Without the variables of the `make test` that may run this test.
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    return subprocess.run(
        ["make", f"PYTHON={python}", "install"],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("python", ["./python3.10", "./not-there"])
def test_install__python_too_old__says_so_and_leaves_nothing(clone: Path, python: str) -> None:
    result = install(clone, python)
    assert result.returncode != 0
    assert result.stdout == ""
    assert result.stderr.splitlines()[0] == (
        f"{python} cannot be used: Python 3.11 or newer is needed, with its venv module."
    )
    assert not (clone / ".venv").exists()


def test_install__environment_of_an_old_python__is_replaced(clone: Path) -> None:
    subprocess.run(["./python3.10", "-m", "venv", ".venv"], cwd=clone, check=True)
    result = install(clone, "./python3.12")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Installing 2 packages into .venv.")
    assert "(3, 12, 1)" in (clone / ".venv" / "bin" / "python").read_text()


def test_install__environment_that_works__is_kept(clone: Path) -> None:
    install(clone, "./python3.12")
    (clone / ".venv" / "bin" / "flask").touch()
    (clone / "requirements.txt").touch()
    assert install(clone, "./python3.12").returncode == 0
    assert (clone / ".venv" / "bin" / "flask").exists()
