"""The processes of a run: each in a session of its own, and watched over by the guard."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO


class Guard:
    """Ends the other processes if this one is killed. See guard.py."""

    def __init__(self, pass_fds: Sequence[int]) -> None:
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, str(Path(__file__).with_name("guard.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=pass_fds,
            bufsize=0,
        )

    def tell(self, name: str, pid: int) -> None:
        """Say which process bears a name now; 0 for none."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # somebody ended the guard: run without it
            self._process.stdin.write(f"{name} {pid}\n".encode())

    def dismiss(self) -> None:
        """Let it go, when all that it guards has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Child:
    """A process that Ctrl-C does not reach: this program alone ends it, in its turn.

    Args:
        name: what the guard calls it.
        seconds: how long it may take to end.
    """

    def __init__(self, name: str, guard: Guard, seconds: float) -> None:
        self.name = name
        self._guard = guard
        self._seconds = seconds
        self._process: asyncio.subprocess.Process | None = None

    async def start(
        self,
        command: Sequence[str],
        *,
        pass_fds: Sequence[int],
        cwd: Path,
        env: Mapping[str, str] | None = None,
        output: IO[bytes] | None = None,
    ) -> None:
        """Start it. Raises OSError where the program can't be run at all."""
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=pass_fds,
            cwd=cwd,
            env=env,
        )
        self._guard.tell(self.name, self._process.pid)

    @property
    def ended(self) -> bool:
        return self._process is None or self._process.returncode is not None

    async def wait(self) -> str:
        """Wait for its end. Returns how it ended, in words."""
        assert self._process is not None, "not started"
        code = await self._process.wait()
        self._guard.tell(self.name, 0)
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

    async def stop(self) -> None:
        """Ask it to end, and make it end when its time is over; with it all that it started."""
        if self._process is None:
            return
        if self._process.returncode is None:
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), self._seconds)
        except TimeoutError:
            self._process.kill()
        await self.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
