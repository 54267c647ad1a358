"""What the connections of one pool know of their server: whether it changed, whether it replies.

A server that is paused, or a machine that is gone, refuses nothing: each call waits for its
timeout, and a request makes several. Requests would pile up until the worker accepts no more, and
not even its health check gets a reply. So once a call has timed out, and an attempt after it gets
no reply either, calls fail at once, while another attempt begins every second. Any reply ends that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Thread

from redis import exceptions

# A failure that took less is no reason to spare others the wait.
_LONG_SECONDS = 0.5
# A single broken connection is told apart by the first attempt, which gets its reply on another.
_FIRST_SECONDS, _ATTEMPT_SECONDS = 0.25, 1.0
# Attempts end when nobody has called for this long; the next call makes its own.
_WANTED_SECONDS = 10.0


class NotResponding(exceptions.RedisError):
    """The server has not replied for a while, so it was not asked.

    Attributes:
        failure: how the last call failed.
    """

    def __init__(self, failure: Exception) -> None:
        super().__init__(str(failure))
        self.failure = failure


class Server:
    """The server of one pool.

    Args:
        attempt: asks the server something, on a connection of the pool.

    Attributes:
        changes: how often another server became the primary, as far as the pool has noticed.
    """

    def __init__(self, attempt: Callable[[], object] = lambda: None) -> None:
        self.attempt = attempt
        self.changes = 0
        self._failure: Exception | None = None
        self._is_attempting = False
        self._replied_at = self._wanted_at = -math.inf

    def changed(self) -> None:
        """Another server is the primary now."""
        self.changes += 1
        self.replied()

    def check(self) -> None:
        """Raise NotResponding if the server does not reply."""
        if self._failure is not None:
            self._wanted_at = time.monotonic()
            raise NotResponding(self._failure)

    def replied(self) -> None:
        """The server has replied, if only with an error."""
        self._replied_at = time.monotonic()
        self._failure = None

    def failed(self, error: Exception, seconds: float) -> None:
        """A call has waited for the server, and failed."""
        now = time.monotonic()
        if seconds < _LONG_SECONDS or self._replied_at > now - seconds or self._is_attempting:
            return
        self._is_attempting = True
        self._wanted_at = now
        Thread(target=self._attempt_again, args=(error, now), daemon=True).start()

    def _attempt_again(self, error: Exception, since: float) -> None:
        """Begin an attempt every second, while the earlier ones wait for the timeout."""
        pause = _FIRST_SECONDS
        while time.monotonic() - self._wanted_at < _WANTED_SECONDS:
            Thread(target=self._attempt_once, daemon=True).start()
            time.sleep(pause)
            pause = _ATTEMPT_SECONDS
            if self._replied_at > since:
                break
            self._failure = error
        self._is_attempting = False
        self._failure = None

    def _attempt_once(self) -> None:
        began = time.monotonic()
        with suppress(exceptions.RedisError):
            self.attempt()
        if time.monotonic() - began < _LONG_SECONDS:
            self.replied()  # or it refuses, which calls find out as fast
