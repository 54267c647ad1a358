"""Log in with an API key, and log out."""

from __future__ import annotations

from flask import g, redirect, request, url_for
from werkzeug.wrappers import Response

from app.auth.authenticate import PUBLIC, READ, log_in, requires
from app.errors import (
    ExpiredKey,
    InvalidCredentials,
    MissingScope,
    NotLoggedIn,
    RateLimited,
    RevokedKey,
)
from app.services import services
from app.web.dashboard.forms import read_form, read_signed_form
from app.web.dashboard.pages import blueprint, render


@blueprint.get("/login")
@requires(PUBLIC)
def login() -> Response:
    """The login page; a redirect if already logged in."""
    if services().sessions.find(request) is not None:
        return redirect(_next(), 303)
    return render("login.html")


@blueprint.post("/login")
@requires(PUBLIC)
def open_session() -> Response:
    """Log in with a key of scope read or admin."""
    form = read_form()
    try:
        caller = log_in(form.get("key", "").strip())
    except (InvalidCredentials, ExpiredKey, RevokedKey, MissingScope, RateLimited) as problem:
        g.event["reason"] = problem.reason
        refusal = render("login.html", problem.status, problem=problem)
        if "Retry-After" in problem.headers:
            refusal.headers["Retry-After"] = problem.headers["Retry-After"]
        return refusal
    sessions = services().sessions
    reply = redirect(_next(), 303)
    sessions.set_cookie(sessions.open(caller), request, reply)
    return reply


@blueprint.post("/logout")
@requires(READ, by_session=True)
def close_session() -> Response:
    """Log out."""
    read_signed_form()
    reply = redirect(url_for(".login", done="logged-out"), 303)
    services().sessions.end(g.pop("session"), request, reply)
    return reply


@blueprint.errorhandler(NotLoggedIn)
def ask_to_log_in(_: NotLoggedIn) -> Response:
    """Redirect to the login page, which returns to the requested page."""
    g.event["reason"] = NotLoggedIn.reason
    requested = request.full_path.rstrip("?") if request.method == "GET" else "/"
    return redirect(url_for(".login", next=None if requested == "/" else requested), 303)


def _next() -> str:
    """Where to go after login: never to another site."""
    target = request.args.get("next", "/")
    # Browsers read "/\host" as "//host".
    is_local = target.startswith("/") and not target.startswith(("//", "/\\"))
    return target if is_local and target.isprintable() else "/"
