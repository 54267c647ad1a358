"""Programs in Node, with packages of npm. `.ci/run` installs both."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import IO

import pytest

from tests.support.polling import DEADLINE, wait_until

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


class Program:
    """A program that runs until its end or that of the ``with`` block, and its lines so far."""

    def __init__(self, folder: Path, name: str, env: dict[str, str]) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            ["node", name],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **env},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._errors: list[str] = []
        self._threads = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in (
                (self.process.stdout, self.lines),
                (self.process.stderr, self._errors),
            )
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _read(stream: IO[str], lines: list[str]) -> None:
        lines.extend(line.rstrip("\n") for line in stream)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)
        for thread in self._threads:
            thread.join(DEADLINE)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def say(self) -> None:
        """Send it an empty line."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def wait_for(self, beginning: str) -> str:
        """Wait for a line with this beginning. Returns the first one."""

        def found() -> list[str]:
            return [line for line in self.lines if line.startswith(beginning)]

        wait_until(lambda: found() or self.process.poll() is not None)
        assert found(), "\n".join([*self.lines, *self._errors])
        return found()[0]
