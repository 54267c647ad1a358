"""Dashboard sessions: from a request's cookie to the app and scope of a key.

A session is a signed cookie that names the key by its label and never contains the key. It ends
with the key, at logout, after twelve hours without activity, and a week after login.
"""

from __future__ import annotations

import hmac
import math
import secrets
from contextlib import suppress
from typing import NamedTuple

from flask import Request
from itsdangerous import BadData, URLSafeTimedSerializer
from werkzeug.wrappers import Response

from app.auth.keyring import Caller, KeyRing
from app.store import Store, StoreError, Tuning

IDLE_SECONDS = 12 * 3600
LONGEST_SECONDS = 7 * 24 * 3600
# The signing secret is cached this long, so that forged cookies cost no store call.
_SECRET_KEPT_SECONDS = 10


class Session(NamedTuple):
    """A session.

    Attributes:
        id: random.
        caller: the owner of the key that it was opened with.
        token: the CSRF token that each form must send.
        began: time of login, in s since the epoch.
        issued: when the cookie was made, in s since the epoch.
    """

    id: str
    caller: Caller
    token: str
    began: float
    issued: float

    def sent(self, token: str | None) -> bool:
        """Whether a form sent this session's token."""
        return hmac.compare_digest((token or "").encode(), self.token.encode())


class Sessions:
    """Opens, finds and ends sessions. Raises StoreError."""

    def __init__(self, store: Store, ring: KeyRing, tuning: Tuning) -> None:
        self._now, self._monotonic = tuning.now, tuning.monotonic
        self._renewed_seconds = tuning.session_renewed_seconds
        self._store = store
        self._ring = ring
        self._trusted_seconds = tuning.last_read_trusted_seconds
        self._secret, self._secret_read, self._secret_due = b"", -math.inf, -math.inf

    def prepare(self) -> None:
        """Create the secret early: by the time of the first login, the store may refuse writes."""
        if not self._secret:
            with suppress(StoreError):
                self._signer()

    def open(self, caller: Caller) -> Session:
        """A new session; it takes effect when its cookie is set."""
        now = self._now()
        return Session(secrets.token_hex(16), caller, secrets.token_hex(16), now, now)

    def find(self, request: Request) -> Session | None:
        """The session of a request; None if there is none or it has ended."""
        cookie = request.cookies.get(_name(request))
        if not cookie:
            return None
        try:
            (session_id, token, began, *caller), made = self._signer().loads(
                cookie, return_timestamp=True
            )
            session = Session(session_id, Caller(*caller), token, began, made.timestamp())
        except (BadData, TypeError, ValueError):
            return None
        # The library's own check refuses a cookie from a worker whose clock is a second ahead.
        now = self._now()
        if now - session.issued > IDLE_SECONDS or now - session.began > LONGEST_SECONDS:
            return None
        if not self._ring.holds(session.caller) or self._store.sessions.is_ended(session.id):
            return None
        return session

    def set_cookie(self, session: Session, request: Request, response: Response) -> None:
        """Give the browser the session's cookie."""
        response.set_cookie(
            _name(request),
            str(self._signer().dumps([session.id, session.token, session.began, *session.caller])),
            max_age=IDLE_SECONDS,
            secure=request.is_secure,
            httponly=True,
            samesite="Lax",
        )

    def renew(self, session: Session, request: Request, response: Response) -> None:
        """Extend an active session."""
        if self._now() - session.issued > self._renewed_seconds:
            self.set_cookie(session, request, response)

    def end(self, session: Session, request: Request, response: Response) -> None:
        """End a session, also for copies of its cookie."""
        self._store.sessions.end(session.id, IDLE_SECONDS)
        response.delete_cookie(
            _name(request), secure=request.is_secure, httponly=True, samesite="Lax"
        )

    def _signer(self) -> URLSafeTimedSerializer:
        now = self._monotonic()
        if now >= self._secret_due:
            is_trusted = now - self._secret_read <= self._trusted_seconds
            if is_trusted:
                # Other requests don't wait for this call, which may take as long as the timeout.
                self._secret_due = now + _SECRET_KEPT_SECONDS
            try:
                self._secret = self._store.sessions.secret()
            except StoreError:
                if not is_trusted:
                    raise
            else:
                self._secret_read = now
                self._secret_due = now + _SECRET_KEPT_SECONDS
        return URLSafeTimedSerializer(self._secret, salt="dashboard")


def _name(request: Request) -> str:
    """The cookie's name; with TLS, one that browsers accept from this host only."""
    return "__Host-cohort-receiver" if request.is_secure else "cohort-receiver"
