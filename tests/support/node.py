"""Programs in Node, with packages of npm. `.ci/run` installs both."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.polling import DEADLINE

MODULES = Path(__file__).resolve().parents[2] / ".cache" / "node" / "node_modules"


def node_folder(folder: Path, *packages: str) -> Path:
    """Let programs in ``folder`` import these packages; skip the test if something is missing."""
    missing = [name for name in ("node",) if not shutil.which(name)]
    missing += [f"npm's {name}" for name in packages if not (MODULES / name).is_dir()]
    if missing:
        pytest.skip(f"{missing[0]} is missing; .ci/run installs it")
    (folder / "node_modules").symlink_to(MODULES)
    return folder


def run_node(folder: Path, *command: str | Path, env: dict[str, str] | None = None) -> str:
    """Run a program with Node in ``folder``. Returns what it prints."""
    done = subprocess.run(
        ["node", *command],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **(env or {})},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
