"""The API description, as a document and as a page.

The page is Swagger UI from an installed package. It loads nothing from elsewhere, and its content
security policy forbids it.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import flask_swagger_ui
from flask import (
    Blueprint,
    Flask,
    Response,
    current_app,
    redirect,
    request,
    send_from_directory,
    url_for,
)
from orjson import OPT_APPEND_NEWLINE, dumps
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response as BaseResponse

from app.auth.authenticate import PUBLIC, requires
from app.web.http.contract import JSON
from app.web.openapi.document import document

blueprint = Blueprint("openapi", __name__)

_OURS = Path(str(files("app.web.openapi")))
_SWAGGER_UI = Path(flask_swagger_ui.__file__).parent / "dist"
# Only these files are served.
_FILES = {
    "page.css": _OURS,
    "page.js": _OURS,
    "swagger-ui-bundle.js": _SWAGGER_UI,
    "swagger-ui.css": _SWAGGER_UI,
    "favicon-32x32.png": _SWAGGER_UI,
}
# Swagger UI sets styles on elements; its icons are data: URLs in its style sheet.
_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@blueprint.get("/openapi.json")
@requires(PUBLIC)
def get_document() -> Response:
    """The API description as OpenAPI 3.1."""
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    return Response(_document(app), mimetype=JSON, headers={"Cache-Control": "no-cache"})


@lru_cache(maxsize=1)  # routes and settings don't change
def _document(app: Flask) -> bytes:
    return dumps(document(app), option=OPT_APPEND_NEWLINE)


@blueprint.get("/docs")
@requires(PUBLIC)
def get_page() -> BaseResponse:
    """The API description as an interactive page."""
    if request.path.endswith("/"):
        return redirect(url_for(".get_page"))  # links in the page are relative
    return _file(_OURS, "page.html")


@blueprint.get("/docs/<string:name>")
@requires(PUBLIC)
def get_file(name: str) -> Response:
    """A file of the page."""
    if name not in _FILES:
        raise NotFound()
    return _file(_FILES[name], name)


def _file(folder: Path, name: str) -> Response:
    response = send_from_directory(folder, name)
    response.headers.extend(_HEADERS)
    return response
