"""Headers that tell browsers what they may do with a reply; and calls that came unprotected."""

from __future__ import annotations

from flask import Flask, Response, request

from app.errors import HttpsRequired

# Replies are data: nothing in them is run, framed or taken for another type. A view that serves
# pages sets a policy of its own.
NOT_A_PAGE = "default-src 'none'; frame-ancestors 'none'"
# Seconds that browsers remember to come by HTTPS alone.
HSTS = "max-age=31536000"


def init_app(app: Flask) -> None:
    """Set them on every reply."""

    @app.after_request
    def set_headers(response: Response) -> Response:
        headers = response.headers
        headers.set("X-Content-Type-Options", "nosniff")
        if "Content-Security-Policy" not in headers:
            headers.add("Content-Security-Policy", NOT_A_PAGE)
        if request.environ["wsgi.url_scheme"] == "https":
            headers.add("Strict-Transport-Security", HSTS)
        return response


def require_https(app: Flask) -> None:
    """Refuse what came by plain HTTP, but for the checks of a platform beside the proxy."""

    @app.before_request
    def refuse_plain() -> None:
        if request.environ["wsgi.url_scheme"] != "https" and request.blueprint != "health":
            raise HttpsRequired()
