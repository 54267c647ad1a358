"""How Amplitude reads a receiver's reply: whether to retry, the list id, the rejected users.

`docs/simulator.md` says which of this behaviour is documented and which is assumed.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

from .connection import Reply

FIRST_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 128.0

_SURROGATE = re.compile("[\ud800-\udfff]")


def retry_wait(retry: int) -> float:
    """Return the seconds to wait before retry number `retry`, from 0: 1, 2, 4, … 128."""
    return min(FIRST_RETRY_SECONDS * 2.0**retry, MAX_RETRY_SECONDS)


def is_retried(reply: Reply) -> bool:
    """Return whether Amplitude sends the request again: no reply, 429 or 5xx."""
    return reply.status is None or reply.status == 429 or reply.status >= 500


def list_id(body: Any) -> str | None:
    """Return the list id in the reply to a list creation, or None.

    Where Amplitude looks depends on a path that each integration sets. To work with any receiver,
    this takes `list_id`, `listId` and `id`, at the top level and inside `response`. To check that
    the id is where Amplitude looks, use `list_id_at`.
    """
    names = ("list_id", "listId", "id")
    for path in (*names, *(f"response.{name}" for name in names)):
        if (found := list_id_at(body, path)) is not None:
            return found
    return None


def list_id_at(body: Any, path: str) -> str | None:
    """Return the list id at a path such as `response.listId`, or None if there is no usable one."""
    for name in path.split("."):
        body = body.get(name) if isinstance(body, dict) else None
    if isinstance(body, bool) or not isinstance(body, str | int):
        return None
    text = str(body)
    # A lone surrogate can't be sent in a path.
    return text if text and not _SURROGATE.search(text) else None


def rejected_users(reply: Reply) -> int:
    """Return how many users the receiver reports as `rejected` in its reply."""
    if b"rejected" not in reply.body:
        return 0
    body = reply.json()
    value = body.get("rejected") if isinstance(body, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def excerpt(body: bytes, limit: int = 200) -> str:
    """Return the beginning of a body on one printable line.

    For a problem document: its detail and its first error.
    """
    with suppress(ValueError, RecursionError):
        document = json.loads(body)
        if isinstance(document, dict) and isinstance(document.get("detail"), str):
            text = document["detail"] + _first_error(document.get("errors"))
            body = text.encode("utf-8", "replace")
    text = " ".join(body[: limit * 4].decode("utf-8", "replace").split())
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _first_error(errors: Any) -> str:
    match errors:
        case [{"place": place, "message": message}, *_]:
            return f" {place}: {message}"
    return ""
