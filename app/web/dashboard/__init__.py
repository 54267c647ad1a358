"""The dashboard: pages rendered on the server, which also work without JavaScript."""

from app.web.dashboard import login, resyncs, views
from app.web.dashboard.pages import blueprint

__all__ = ["blueprint", "login", "resyncs", "views"]
