"""Flask without two steps per request that the service does not need.

docs/decisions/workers.md has the measurement.
"""

from __future__ import annotations

from typing import Any

from flask import Flask, Request
from werkzeug.routing import MapAdapter
from werkzeug.wsgi import get_host


class ServiceApp(Flask):
    """The application: no view is a coroutine, and no route has a host name of its own."""

    def ensure_sync(self, func: Any) -> Any:
        return func

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        if request is None:
            return None
        environ = request.environ
        request.host = host = get_host(environ)  # refuses an invalid host
        return MapAdapter(
            self.url_map,
            host,
            environ.get("SCRIPT_NAME", ""),
            "",
            environ["wsgi.url_scheme"],
            environ["PATH_INFO"].encode("latin-1").decode(errors="replace"),
            environ["REQUEST_METHOD"],
            environ.get("QUERY_STRING"),
        )
