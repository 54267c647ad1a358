"""Security headers, and the refusal of plain HTTP."""

from __future__ import annotations

from flask import Flask, Response, request

from app.errors import HttpsRequired

# For replies that are data. Views that serve pages set a policy of their own.
NOT_A_PAGE = "default-src 'none'; frame-ancestors 'none'"
# For a year, browsers use HTTPS only.
HSTS = "max-age=31536000"


def init_app(app: Flask) -> None:
    """Set security headers on every reply."""

    @app.after_request
    def set_headers(response: Response) -> Response:
        headers = response.headers
        headers.add("X-Content-Type-Options", "nosniff")
        if "Content-Security-Policy" not in headers:
            headers.add("Content-Security-Policy", NOT_A_PAGE)
        if request.environ["wsgi.url_scheme"] == "https":
            headers.add("Strict-Transport-Security", HSTS)
        return response


def require_https(app: Flask) -> None:
    """Refuse plain HTTP, except for /version and health checks, which platforms send directly."""

    @app.before_request
    def refuse_plain() -> None:
        if request.environ["wsgi.url_scheme"] != "https" and request.blueprint != "health":
            raise HttpsRequired()
