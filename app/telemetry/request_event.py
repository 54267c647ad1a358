"""A finished request, as metrics and sync history receive it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from app.cohorts import Outcome


class FinishedRequest(NamedTuple):
    """A request whose reply is ready to be sent.

    Attributes:
        event: the fields of its log event.
        blueprint: the blueprint that handled it; "" if no route matched.
        outcome: what it did to cohorts; None if it named none.
        status: HTTP status of the reply.
        seconds: since the request began.
    """

    event: dict[str, Any]
    blueprint: str
    outcome: Outcome | None
    status: int
    seconds: float


Listener = Callable[[FinishedRequest], None]
