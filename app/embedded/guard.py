"""Ends the service and the store of a run that was killed and could not do so itself.

A process of its own, as the last word must not depend on the process that may be killed, and
neither Linux nor macOS ends children with their parent. It reads ``<name> <pid>`` from its input
for each process that the run starts, and ``<name> 0`` when that one has ended. The end of the
input is the end of the run. It knows the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

# In the order in which they are to end, with the seconds that each may take.
ORDER = (("service", 8.8), ("store", 1.0))


def main() -> None:
    running: dict[str, int] = {}
    for line in sys.stdin:
        name, pid = line.split()
        running[name] = int(pid)
    for name, seconds in ORDER:
        if running.get(name):
            end(running[name], seconds)


def end(pid: int, seconds: float) -> None:
    """End a process that leads a session; after ``seconds`` with force, and all its children."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
