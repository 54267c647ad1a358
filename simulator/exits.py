"""The exit codes of the command line."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """How a command ended; where several hold, the one that is listed last."""

    OK = 0
    FAILED = 1
    """Requests were given up, or a check failed."""
    USAGE = 2
    """The command line is wrong (also: a file or a reader that can't be used)."""
    UNAUTHORISED = 3
    """The receiver refuses the key."""
    UNREACHABLE = 4
    """Nothing answers at the address."""
    DIFFERENT = 5
    """The receiver's state is not what it must be."""
    INTERRUPTED = 130
    """Stopped by Ctrl-C."""


HELP = """\b
Exit codes:
    0  all sent and, with --reader, the state as it must be; all checks passed
    1  requests were given up, or a check failed
    2  the command line is wrong, or a file or reader can't be used
    3  the receiver refuses the key
    4  nothing answers at the address
    5  the receiver's state is not what it must be (with --reader)
  130  stopped by Ctrl-C; the table says what was done so far
"""
