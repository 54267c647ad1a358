"""``python -m app.embedded``: start the supervisor, and pass signals on by closing its input.

The supervisor and all that it starts are a session of their own, which Ctrl-C in a terminal does
not reach. However this process ends, ``kill -9`` included, the supervisor's input ends and it stops
everything in order. If the supervisor is killed instead, this process kills what it left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Exit code 0 after SIGINT, SIGTERM or SIGHUP; 1 if the service cannot start or continue."""
    root = str(Path(__file__).resolve().parents[2])
    path = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    reader, writer = os.pipe()
    lifeline = os.fdopen(writer, "wb")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: lifeline.close())
    # -P: never import another `app` from the current folder.
    supervisor = subprocess.Popen(
        [sys.executable, "-P", "-m", "app.embedded.supervisor"],
        stdin=reader,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
    )
    code = supervisor.wait()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(supervisor.pid, signal.SIGKILL)
    if code < 0:
        name = signal.Signals(-code).name
        print(
            f"cohort-receiver: The supervisor was killed ({name}). The service and the store have "
            "been stopped.",
            file=sys.stderr,
        )
    return 0 if code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
