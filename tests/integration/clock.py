"""A clock that a test sets."""

from __future__ import annotations

import time


class Clock:
    """The system's clock, some seconds ahead of it or behind; or one that stands."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.stands_at: float | None = None

    def __call__(self) -> float:
        return self.ahead + (time.time() if self.stands_at is None else self.stands_at)

    def forward(self, seconds: float) -> None:
        self.ahead += seconds
