"""What the supervisor does with each process that it starts."""

from __future__ import annotations

import signal
import subprocess


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
