"""Who calls: from the request's key to its app and scope.

Three ways to send a key: Basic with the key as username (what Amplitude's document says), the
headers ``api_key`` and ``app_id`` (what its test request does), and Bearer.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from hashlib import sha256
from typing import Any, NamedTuple, TypeVar

from flask import Flask, Request, g, request

from app.errors import InvalidCredentials, MissingCredentials, MissingScope, RateLimited
from app.settings import Settings
from app.store import Rates, StoreError, StoreFull

INGEST, READ, ADMIN = "ingest", "read", "admin"
METRICS = "metrics"  # of the token that opens /metrics and nothing else
PUBLIC = "public"
# The scopes that open what is marked with one.
_OPENED_BY = {INGEST: {INGEST, ADMIN}, READ: {READ, ADMIN}, METRICS: {METRICS, READ, ADMIN}}

View = TypeVar("View", bound=Callable[..., Any])

_CHALLENGE = {"WWW-Authenticate": 'Basic realm="Cohort Receiver", charset="UTF-8"'}


class Caller(NamedTuple):
    """A key that was recognised. ``label`` stands for the key where the key may not stand."""

    app_id: str
    scope: str
    label: str

    def may(self, scope: str) -> bool:
        return self.scope in _OPENED_BY.get(scope, {ADMIN})


class KeyRing:
    """The keys in force. Keeps their digests only."""

    def __init__(self, settings: Settings) -> None:
        self._callers: list[tuple[bytes, Caller]] = []
        for scope, keys in (
            (INGEST, settings.api_keys),
            (READ, settings.read_api_keys),
            (ADMIN, settings.admin_api_keys),
        ):
            for entry in keys:
                digest = _digest(entry.key)
                label = f"{scope}-{digest.hex()[:8]}"
                self._callers.append((digest, Caller(entry.app_id, scope, label)))
        if settings.metrics_token:
            self._callers.append((_digest(settings.metrics_token), Caller("-", METRICS, METRICS)))

    def find(self, key: str) -> Caller | None:
        """Whose key it is. Takes the same time whether and wherever it is found."""
        digest = _digest(key)
        found = None
        for known, caller in self._callers:
            if hmac.compare_digest(known, digest):
                found = caller
        return found


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()


def requires(scope: str) -> Callable[[View], View]:
    """Mark a view with the scope that its callers need. A view with none is closed to all."""

    def mark(view: View) -> View:
        view.scope = scope  # type: ignore[attr-defined]
        return view

    return mark


def init_app(app: Flask, settings: Settings, rates: Rates) -> None:
    """Check every request's credentials before anything of its body is read."""
    ring = KeyRing(settings)

    @app.before_request
    def authenticate() -> None:
        endpoint = request.endpoint
        if endpoint is None:
            return  # no such path, or not by this method: an error reply without secrets
        scope = getattr(app.view_functions[endpoint], "scope", None)
        if scope == PUBLIC:
            return
        caller = _identify(ring, settings, rates)
        g.caller = caller
        g.event.update(app=caller.app_id, key=caller.label)
        if scope is None or not caller.may(scope):
            raise MissingScope(f"This call needs a key with the scope {scope}.")
        if scope == METRICS:
            return  # not counted, as that needs the store: metrics also tell that it is gone
        try:
            retry_after = rates.hit(settings.rate_limit, "key", caller.app_id, caller.label)
        except StoreFull:
            return  # can't be counted; reading goes on, and the store itself refuses what writes
        if retry_after is not None:
            raise RateLimited(retry_after)


def _identify(ring: KeyRing, settings: Settings, rates: Rates) -> Caller:
    key = _sent_key(request)
    caller = ring.find(key) if key else None
    claimed_app = request.environ.get("HTTP_APP_ID")
    if caller is not None and claimed_app in (None, caller.app_id):
        return caller
    _count_failure(settings, rates)
    if key is None:
        raise MissingCredentials(
            "Send the API key as the username of Basic authentication, as a Bearer token, "
            "or in the header api_key. In the address it is never taken: addresses are logged.",
            headers=_CHALLENGE,
        )
    raise InvalidCredentials(
        "The API key is not known, or does not belong to the app in app_id.", headers=_CHALLENGE
    )


def _count_failure(settings: Settings, rates: Rates) -> None:
    try:
        retry_after = rates.hit(
            settings.auth_failure_rate_limit, "address", request.remote_addr or "unknown"
        )
    except StoreError:
        return  # the credentials are bad whether they can be counted or not
    if retry_after is not None:
        raise RateLimited(retry_after)


def _sent_key(request: Request) -> str | None:
    authorization = request.authorization
    if authorization is not None:
        if authorization.type == "basic" and authorization.username:
            return authorization.username
        if authorization.type == "bearer" and authorization.token:
            return authorization.token
    return request.headers.get("api_key") or None
