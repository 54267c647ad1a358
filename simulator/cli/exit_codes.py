"""The exit codes of the command line."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended.

    If several apply, the first of INTERRUPTED, UNAUTHORISED, DIFFERENT, USAGE and FAILED.
    """

    OK = 0
    FAILED = 1
    """Requests were given up or changes rejected, or the receiver is not certified."""
    USAGE = 2
    """The command line is invalid, or a file or reader is unusable."""
    UNAUTHORISED = 3
    """The receiver refuses the key."""
    UNREACHABLE = 4
    """Nothing listens at the address."""
    DIFFERENT = 5
    """The receiver's state differs from the expected state."""
    INTERRUPTED = 130
    """Stopped by Ctrl-C."""


HELP = """\b
Exit codes:
    0  everything was delivered and, with --reader, the state is as expected; `certify`: certified
    1  requests were given up, or changes rejected; `certify`: not certified
    2  the command line is invalid, or a file or reader is unusable
    3  the receiver refuses the key
    4  nothing listens at the address
    5  the receiver's state differs from the expected state (`sync` with --reader)
  130  stopped by Ctrl-C; the table of `sync` shows what was done until then
"""
