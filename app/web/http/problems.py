"""The error replies that a call may have."""

from __future__ import annotations

from collections.abc import Iterator

from werkzeug.routing import Rule

from app.auth.authenticate import METRICS, PUBLIC
from app.errors import (
    BodyTimeout,
    BodyTooLarge,
    ExpiredKey,
    HttpsRequired,
    InternalError,
    InvalidCredentials,
    InvalidEncoding,
    InvalidJson,
    InvalidPayload,
    MissingCredentials,
    MissingScope,
    NotFound,
    Problem,
    RateLimited,
    RevokedKey,
    StoreUnavailable,
    UnsupportedMediaType,
)
from app.web.http.contract import Contract

_OF_CALLERS = (
    MissingCredentials,
    InvalidCredentials,
    ExpiredKey,
    RevokedKey,
    HttpsRequired,
    MissingScope,
    RateLimited,
)
_OF_BODIES = (
    *(InvalidJson, InvalidEncoding, InvalidPayload),
    *(BodyTimeout, BodyTooLarge, UnsupportedMediaType),
)


def possible_problems(rule: Rule, contract: Contract, scope: str) -> Iterator[Problem]:
    """Examples of all error replies of a call."""
    kinds: list[type[Problem]] = [
        *contract.problems,
        *([NotFound] if rule.arguments else []),
        *(_OF_BODIES if contract.body else []),
        *(_OF_CALLERS if scope != PUBLIC else []),
        # /metrics replies without the store; its gauges say that the store is down.
        *([StoreUnavailable] if scope not in (PUBLIC, METRICS) else []),
        InternalError,
    ]
    for kind in dict.fromkeys(kinds):
        yield from kind.examples()
