"""What is known of a request that has its answer, for those who count or note it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from app.cohorts import Outcome


class Answered(NamedTuple):
    """A request whose answer is ready.

    Attributes:
        event: what is known of it, as it is logged.
        blueprint: which part of the service it was for; "" where there is no such path.
        outcome: what it did to cohorts; None where it was not about any.
        status: of the answer.
        seconds: that it took so far.
    """

    event: dict[str, Any]
    blueprint: str
    outcome: Outcome | None
    status: int
    seconds: float


Listener = Callable[[Answered], None]
