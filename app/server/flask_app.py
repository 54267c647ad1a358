"""The Flask application's class."""

from __future__ import annotations

from typing import Any

from flask import Flask, Request
from werkzeug.routing import MapAdapter
from werkzeug.wsgi import get_host


class Service(Flask):
    """Flask without what is not used here, and is looked for at every request.

    No view is a coroutine, and no route is for a host name of its own.
    """

    def ensure_sync(self, func: Any) -> Any:
        return func

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        if request is None:
            return super().create_url_adapter(request)
        environ = request.environ
        request.host = host = get_host(environ)  # refuses what can't be one
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
