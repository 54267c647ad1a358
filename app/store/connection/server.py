"""What the connections of one pool know about their server: changes, and whether it replies.

A paused server, or one whose machine is gone, does not refuse connections: each call waits for its
timeout, and a request makes several calls. Requests would pile up until the worker accepts no more,
and even its health check would get no reply. So once a call has timed out, and a probe after it
gets no reply either, calls fail immediately, until a reply arrives: another probe begins every
second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Thread

from redis import exceptions

# After a faster failure, no probe is needed: other calls that try do not wait long either.
_LONG_SECONDS = 0.5
# If only one connection is broken, the first probe gets a reply on another within this time.
_FIRST_SECONDS, _PROBE_SECONDS = 0.25, 1.0
# Probes end when there was no call for this long; the next call goes to the server again.
_WANTED_SECONDS = 10.0


class NotResponding(exceptions.RedisError):
    """The server has not replied for a while, so the call was not sent.

    Attributes:
        failure: how the last call failed.
    """

    def __init__(self, failure: Exception) -> None:
        super().__init__(str(failure))
        self.failure = failure


class Server:
    """The server of one pool.

    Args:
        probe: sends the server a command, on a connection of the pool.

    Attributes:
        changes: how often another server became the primary, as far as the pool has noticed.
    """

    def __init__(self, probe: Callable[[], object] = lambda: None) -> None:
        self.probe = probe
        self.changes = 0
        self._failure: Exception | None = None
        self._is_probing = False
        self._replied_at = self._wanted_at = -math.inf

    def changed(self) -> None:
        """Note that another server has become the primary."""
        self.changes += 1
        self.replied()

    def check(self) -> None:
        """Raise NotResponding if the server does not reply."""
        if self._failure is not None:
            self._wanted_at = time.monotonic()
            raise NotResponding(self._failure)

    def replied(self) -> None:
        """Note a reply of the server, which may be an error."""
        self._replied_at = time.monotonic()
        self._failure = None

    def failed(self, error: Exception, seconds: float) -> None:
        """Note that a call failed after this many seconds."""
        now = time.monotonic()
        if seconds < _LONG_SECONDS or self._replied_at > now - seconds or self._is_probing:
            return
        self._is_probing = True
        self._wanted_at = now
        Thread(target=self._probe_repeatedly, args=(error, now), daemon=True).start()

    def _probe_repeatedly(self, error: Exception, since: float) -> None:
        """Start a probe every second, while earlier ones may still wait for the timeout."""
        pause = _FIRST_SECONDS
        while time.monotonic() - self._wanted_at < _WANTED_SECONDS:
            Thread(target=self._probe_once, daemon=True).start()
            time.sleep(pause)
            pause = _PROBE_SECONDS
            if self._replied_at > since:
                break
            self._failure = error
        self._is_probing = False
        self._failure = None

    def _probe_once(self) -> None:
        began = time.monotonic()
        with suppress(exceptions.RedisError):
            self.probe()
        if time.monotonic() - began < _LONG_SECONDS:
            self.replied()  # or it refuses connections, so calls fail fast anyway
