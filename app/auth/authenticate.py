"""Authentication: from a request's key to its app and scope.

A key is accepted in three forms: as the username of Basic authentication, which Amplitude's
documentation describes; in the header ``api_key``, optionally with ``app_id``, which Amplitude's
test request sends; and as a Bearer token.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Network, ip_address
from typing import Any, TypeVar

from flask import Flask, Request, g, request

from app.auth.keyring import ADMIN, INGEST, METRICS, NEEDED, READ, Caller, KeyRing
from app.errors import (
    InvalidCredentials,
    MissingCredentials,
    MissingScope,
    NotLoggedIn,
    Problem,
    RateLimited,
)
from app.services import services
from app.settings import Settings
from app.store import RateLimiter, StoreError

__all__ = [
    "ADMIN",
    "INGEST",
    "METRICS",
    "PUBLIC",
    "READ",
    "Caller",
    "KeyRing",
    "init_app",
    "requires",
]

PUBLIC = "public"

View = TypeVar("View", bound=Callable[..., Any])

_WITH_PORT = re.compile(r"\[([0-9A-Fa-f:.%]+)\](?::\d+)?|(\d+\.\d+\.\d+\.\d+):\d+")
_CHALLENGE = {"WWW-Authenticate": 'Basic realm="Cohort Receiver", charset="UTF-8"'}


def requires(scope: str, *, by_session: bool = False) -> Callable[[View], View]:
    """Set the scope that callers of a view need. A view without a scope is closed to everybody.

    Args:
        by_session: the view is a page for logged-in users; a key alone does not open it.
    """

    def mark(view: View) -> View:
        view.scope = scope  # type: ignore[attr-defined]
        view.by_session = by_session  # type: ignore[attr-defined]
        return view

    return mark


def init_app(app: Flask, settings: Settings, ring: KeyRing, rates: RateLimiter) -> None:
    """Check every request's credentials before anything of its body is read."""

    @app.before_request
    def authenticate() -> None:
        sent: Request = request._get_current_object()  # type: ignore[attr-defined]
        endpoint = sent.endpoint
        if endpoint is None:
            # No such path or method: no key is needed, as the error reply contains no secrets.
            _note_owner(sent, ring)
            return
        view = app.view_functions[endpoint]
        scope = getattr(view, "scope", None)
        if scope == PUBLIC:
            return
        if getattr(view, "by_session", False):
            caller = _of_session()
        else:
            caller = _identify(sent, ring, settings, rates)
        context: Any = g._get_current_object()
        context.caller = caller
        context.event.update(app=caller.app_id, key=caller.label)
        if scope is None or not caller.may(scope):
            raise MissingScope(f"This call needs a key with {NEEDED[scope or ADMIN]}.")
        if scope == METRICS:
            return  # not rate-limited: metrics must not wait for a store that does not reply
        retry_after = rates.hit(
            settings.rate_limit, "key", caller.app_id, caller.label
        ) or rates.hit(settings.app_rate_limit, "app", caller.app_id)
        if retry_after is not None:
            raise RateLimited(retry_after)


def log_in(key: str) -> Caller:
    """The owner of a key that was entered on the login page.

    Raises:
        InvalidCredentials, ExpiredKey, RevokedKey, MissingScope: the key gives no access.
        RateLimited: too many wrong keys came from this address.
        StoreError: as :meth:`KeyRing.find`.
    """
    parts = services()
    caller = parts.keyring.find(key)
    if caller is None:
        problem = _refusal(parts.keyring, key)
        _count_failure(parts.settings, parts.rates)
        raise problem
    g.event.update(app=caller.app_id, key=caller.label)
    if not caller.may(READ):
        raise MissingScope(
            "This key cannot read cohorts. Log in with a key of scope read or admin."
        )
    return caller


def _of_session() -> Caller:
    session = services().sessions.find(request)
    if session is None:
        raise NotLoggedIn()
    g.session = session
    return session.caller


def _identify(sent: Request, ring: KeyRing, settings: Settings, rates: RateLimiter) -> Caller:
    key = _sent_key(sent)
    caller = ring.find(key) if key else None
    claimed_app = sent.environ.get("HTTP_APP_ID")
    if caller is not None and claimed_app in (None, caller.app_id):
        return caller
    problem = InvalidCredentials() if caller or key is None else _refusal(ring, key)
    _count_failure(settings, rates)
    if key is None:
        raise MissingCredentials(
            "Send the API key as the username of Basic authentication, as a Bearer token, "
            "or in the header api_key. A key in the URL is not accepted, because URLs are logged.",
            headers=_CHALLENGE,
        )
    problem.headers.update(_CHALLENGE)
    raise problem


def _note_owner(sent: Request, ring: KeyRing) -> None:
    """If a request that needs no key has a valid one, name its owner in the log and history."""
    key = _sent_key(sent)
    with suppress(StoreError):
        if key and (caller := ring.find(key)):
            g.event.update(app=caller.app_id, key=caller.label)


def _refusal(ring: KeyRing, key: str) -> Problem:
    """Why a key is refused. If it expired or was revoked, the log and history name its owner."""
    problem, ended = ring.refusal(key)
    if ended is not None:
        g.event.update(app=ended.app_id, key=ended.label)
    return problem


def _count_failure(settings: Settings, rates: RateLimiter) -> None:
    network = _network(request.remote_addr or "unknown")
    retry_after = rates.hit(settings.auth_failure_rate_limit, "address", network)
    if retry_after is not None:
        raise RateLimited(retry_after)


def _network(address: str) -> str:
    """The address that failures are counted by; for IPv6 its /64, which belongs to one caller.

    Some proxies forward an address with the client's port, which changes with every connection.
    """
    with_port = _WITH_PORT.fullmatch(address)
    address = (with_port[1] or with_port[2]) if with_port else address
    try:
        ip = ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, IPv4Address):
        return address
    return str(ip.ipv4_mapped or IPv6Network((int(ip), 64), strict=False))


def _sent_key(request: Request) -> str | None:
    try:
        authorization = request.authorization
    except ValueError:  # werkzeug, on Basic credentials that are not ASCII
        return None
    if authorization is not None:
        if authorization.type == "basic" and authorization.username:
            return authorization.username
        if authorization.type == "bearer" and authorization.token:
            return authorization.token
    return request.headers.get("api_key") or None
