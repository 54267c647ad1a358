"""``python -m app.embedded``, which ``make run`` calls.

Exit code 0 when told to stop, 1 when it can't start or can't go on.
"""

from __future__ import annotations

import asyncio
import os
import sys

from app.embedded.errors import CannotRun
from app.embedded.run import run, say
from app.settings import BadSettings


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
