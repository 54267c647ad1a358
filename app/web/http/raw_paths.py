"""Paths as they were sent: each id in one is decoded on its own.

A WSGI server decodes a path as a whole, so that an id's own ``%2F`` looks like the slash between
two segments. Here routes are matched on the path as it was sent (RFC 3986, section 2.2 says why),
and every id is decoded after that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import unquote

from flask import Flask
from werkzeug.routing import BaseConverter

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


class Segment(BaseConverter):
    """An id that is one segment of the path; a slash in it is sent as ``%2F``."""

    def to_python(self, value: str) -> str:
        # What is not UTF-8 becomes lone surrogates, which no id may hold.
        return unquote(value, errors="surrogateescape")


class Segments(Segment):
    """An id in one or more segments: a slash in it may be sent as it is, or as ``%2F``."""

    regex = ".+?"
    part_isolating = False


class Rest(Segments):
    """An id that is the rest of the path. The one slash that any path may end with isn't its."""

    def to_python(self, value: str) -> str:
        return super().to_python(value.removesuffix("/"))


class PathAsSent:
    """Gives the application the path as it was sent, where the server tells it."""

    def __init__(self, application: WSGIApplication) -> None:
        self._application = application

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        raw = environ.get("RAW_URI", "")
        if raw.startswith("/") and ("%" in raw or not raw.isascii()):
            path = raw.partition("?")[0].removeprefix(environ.get("SCRIPT_NAME", ""))
            environ["PATH_INFO"] = _NOT_ASCII.sub(lambda c: f"%{ord(c[0]):02X}", path)
        else:
            # Nothing in it was decoded, or the server keeps it to itself.
            environ["PATH_INFO"] = environ["PATH_INFO"].replace("%", "%25")
        return self._application(environ, start_response)


def init_app(app: Flask) -> None:
    """Match routes on the path as sent. Before any route is added."""
    app.wsgi_app = PathAsSent(app.wsgi_app)  # type: ignore[method-assign]
    app.url_map.converters.update(segment=Segment, path=Segments, rest=Rest)
    app.url_map.merge_slashes = False
