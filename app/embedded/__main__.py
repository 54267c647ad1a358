"""``python -m app.embedded``, which ``make run`` calls.

Exit code 0 when told to stop, 1 when it can't start or can't go on.
"""

from __future__ import annotations

import signal

# Until there is something to end in order, a Ctrl-C just ends the program.
signal.signal(signal.SIGINT, signal.SIG_DFL)

import asyncio  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402

from app.embedded.errors import CannotRun  # noqa: E402
from app.embedded.run import run, say  # noqa: E402
from app.settings import BadSettings  # noqa: E402


def main() -> int:
    try:
        asyncio.run(run(os.environ))
    except (BadSettings, CannotRun) as error:
        for line in str(error).splitlines():
            say(line)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
