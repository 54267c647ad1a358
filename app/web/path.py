"""Ids in a request's path."""

from __future__ import annotations

from flask import request
from werkzeug.routing import BaseConverter

from app.cohorts.cohort import MAX_TRAIT_BYTES, MAX_USER_ID_BYTES, text_problem
from app.errors import InvalidPayload


class Rest(BaseConverter):
    """All that is left of a path, whatever it holds: slashes at any place, dots, line breaks."""

    part_isolating = False
    regex = "(?s:.+)"


def user_id() -> str:
    """The user id that the current request's path ends in. Raises InvalidPayload."""
    return _last_id("user_id", MAX_USER_ID_BYTES)


def cohort_id() -> str:
    """The cohort id that the current request's path ends in. Raises InvalidPayload."""
    return _last_id("cohort_id", MAX_TRAIT_BYTES)


def _last_id(name: str, max_bytes: int) -> str:
    """The id of a rule that ends in ``<rest:name>``, exactly as it was sent.

    A slash at the end of the path is ignored, as in all paths. A slash that the id itself ends in
    is sent as ``%2F``, which is why the path is looked at before it is decoded.
    """
    assert request.url_rule is not None
    before = request.url_rule.rule.partition("<")[0]
    path: str = request.environ["PATH_INFO"]
    raw = path.removeprefix(before).encode("latin-1")  # how WSGI carries bytes
    if request.environ["RAW_URI"].partition("?")[0].endswith("/"):
        raw = raw.removesuffix(b"/")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise _invalid(name, "Must be valid UTF-8.") from None
    if problem := text_problem(text, max_bytes):
        raise _invalid(name, problem)
    return text


def _invalid(name: str, message: str) -> InvalidPayload:
    return InvalidPayload("Nothing was changed.", errors=[{"place": name, "message": message}])
