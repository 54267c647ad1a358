"""Deadlines of calls that write, in the time of the server that carries them out.

A call sent on an old connection may reach the server after newer calls on new connections: the
server was suspended, or the network delayed it. A call whose caller has given up must not be
carried out then, as it would undo what was acknowledged since. So scripts that write, except
those for sessions and rate limits, are sent with a deadline, and refuse to run after it
(docs/decisions/fence.md).
"""

from __future__ import annotations

import time
from typing import Any

from redis import exceptions

# Prepended by `register_fenced`. The script may use `store_time`, the reply of TIME.
CHECK = (
    "local store_time = redis.call('TIME') "
    "do local deadline, longest = string.match(table.remove(ARGV), '^(%d+) (%d+)$') "
    "local left = deadline - store_time[1] * 1000 - math.floor(store_time[2] / 1000) "
    # A deadline too far ahead was sent before the server's clock was set back.
    "if left < 0 or left > tonumber(longest) then "
    "return redis.error_reply('LATE The deadline has passed.') end end "
)
# The clocks of process and server may drift apart by this much before a deadline seems too far
# ahead.
_DRIFT_MS = 1000


class ServerClock:
    """A server's clock, derived from the monotonic one of this process."""

    def __init__(self) -> None:
        self._ahead_ms: int | None = None

    @property
    def known(self) -> bool:
        return self._ahead_ms is not None

    def read(self, connection: Any) -> None:
        """Ask the server for its time, on an open connection."""
        connection.send_command("TIME", check_health=False)
        seconds, microseconds = map(int, connection.read_response())
        # Never ahead of the server's clock, as the reply's travel time is not added.
        self._ahead_ms = seconds * 1000 + microseconds // 1000 - _monotonic_ms()

    def deadline(self, timeout: float) -> str:
        """The last argument of a script that writes.

        Args:
            timeout: seconds after which the caller gives up.
        """
        assert self._ahead_ms is not None, "the connection has read it"
        timeout_ms = int(timeout * 1000)
        deadline_ms = self._ahead_ms + _monotonic_ms() + timeout_ms
        return f"{deadline_ms} {timeout_ms + _DRIFT_MS}"


def is_late(error: object) -> bool:
    """Whether a script has refused to run because of its deadline."""
    return isinstance(error, exceptions.ResponseError) and str(error).startswith("LATE ")


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000
