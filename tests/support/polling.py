"""Waiting for a condition, by polling it."""

from __future__ import annotations

import time
from collections.abc import Callable

DEADLINE = 60.0  # generous: other programs may use the machine
_PAUSE = 0.02


def wait_until(condition: Callable[[], object], seconds: float = DEADLINE) -> None:
    """Poll until ``condition()`` is true; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(_PAUSE)
