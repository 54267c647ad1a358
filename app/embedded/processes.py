"""What the supervisor and its store share: waiting, stopping processes, and printing."""

from __future__ import annotations

import contextlib
import select
import signal
import subprocess
import sys


class Stopped(Exception):
    """Standard input has ended."""


def wait(seconds: float) -> None:
    """Sleep. Raises Stopped as soon as standard input ends."""
    if select.select([sys.stdin], [], [], seconds)[0]:
        raise Stopped


def stop(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Terminate a process; kill it if it is still running after ``seconds``."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def exit_reason(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def say(line: str) -> None:
    """Print one line about the run itself."""
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"cohort-receiver: {line}", file=sys.stderr, flush=True)
