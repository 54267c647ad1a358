"""Match routes on the raw path, then decode each id in it.

A WSGI server decodes the whole path, so ``%2F`` within an id looks like the slash between two
segments. RFC 3986, section 2.2, explains why a path must be split before it is decoded.
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
    """An id in one path segment; slashes in it must be sent as ``%2F``."""

    def to_python(self, value: str) -> str:
        # Invalid UTF-8 becomes lone surrogates, which validation of the id refuses.
        return unquote(value, errors="surrogateescape")


class Segments(Segment):
    """An id in one or more path segments; slashes in it may be sent as ``/`` or ``%2F``."""

    regex = ".+?"
    part_isolating = False


class Rest(Segments):
    """An id at the end of the path, without the trailing slash that any path may have."""

    def to_python(self, value: str) -> str:
        return super().to_python(value.removesuffix("/"))


class RawPath:
    """Pass on the raw path if the server provides it (gunicorn's ``RAW_URI``)."""

    def __init__(self, application: WSGIApplication) -> None:
        self._application = application

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        raw = environ.get("RAW_URI", "")
        if raw.startswith("/") and ("%" in raw or not raw.isascii()):
            path = raw.partition("?")[0].removeprefix(environ.get("SCRIPT_NAME", ""))
            environ["PATH_INFO"] = _NOT_ASCII.sub(lambda c: f"%{ord(c[0]):02X}", path)
        else:
            # Nothing was encoded, or the server does not provide the raw path.
            environ["PATH_INFO"] = environ["PATH_INFO"].replace("%", "%25")
        return self._application(environ, start_response)


def init_app(app: Flask) -> None:
    """Match routes on the raw path. Call before any route is added."""
    app.wsgi_app = RawPath(app.wsgi_app)  # type: ignore[method-assign]
    app.url_map.converters.update(segment=Segment, path=Segments, rest=Rest)
    app.url_map.merge_slashes = False
