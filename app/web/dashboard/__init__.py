"""The dashboard: pages for people, made on the server, that work without a script."""

from app.web.dashboard.views import blueprint

__all__ = ["blueprint"]
