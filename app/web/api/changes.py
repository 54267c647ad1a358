"""The change stream: who entered and left which cohort, in pages or as server-sent events."""

from __future__ import annotations

from typing import cast

from flask import Blueprint, Response, g, request

from app.auth.authenticate import READ, requires
from app.errors import CursorExpired, InvalidParameter, TooManyFollowers
from app.services import services
from app.store import FeedPosition
from app.web.api.change_stream import shown
from app.web.api.lookup import store
from app.web.api.schemas import ChangesQuery, ChangesReply, EventReply, StreamHeaders, StreamQuery
from app.web.http.contract import describes, parameters, send
from app.web.http.cursors import EARLIEST, LATEST, stream_cursor

blueprint = Blueprint("changes", __name__, url_prefix="/api/v1")

EVENT_STREAM = "text/event-stream"
# X-Accel-Buffering: proxies must forward each event at once.
_STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

_CHANGES_QUERY, _STREAM_QUERY = ChangesQuery(), StreamQuery()


@blueprint.get("/changes")
@requires(READ)
@describes(
    *(InvalidParameter, CursorExpired), query=_CHANGES_QUERY, reply=ChangesReply(), paged=True
)
def get_changes() -> Response:
    """Changes after a cursor, a page at a time. ``next`` is always set."""
    asked = parameters(_CHANGES_QUERY)
    position = _position(asked["cursor"])
    page = store().change_stream.read(g.caller.app_id, position, limit=asked["limit"])
    cursor = stream_cursor(page.after)
    document = {"changes": [shown(change) for change in page.changes], "more": page.more}
    return send(document | {"next": cursor}, next_cursor=cursor)


@blueprint.get("/changes/stream")
@requires(READ)
@describes(
    *(InvalidParameter, CursorExpired, TooManyFollowers),
    query=_STREAM_QUERY,
    headers=StreamHeaders(),
    media_type=EVENT_STREAM,
    reply=EventReply(),
)
def stream_changes() -> Response:
    """Changes after a cursor as server-sent events. Resumes after the Last-Event-ID."""
    asked = parameters(_STREAM_QUERY, cursor=request.headers.get("Last-Event-ID"))
    feed = services().change_feed
    connection = request.environ.get("gunicorn.socket")
    events = feed.follow(g.caller.app_id, _position(asked["cursor"]), connection)
    return Response(events, mimetype=EVENT_STREAM, headers=_STREAM_HEADERS)


def _position(cursor: FeedPosition | str) -> FeedPosition:
    changes = store().change_stream
    if cursor == EARLIEST:
        return changes.oldest()
    return changes.newest(g.caller.app_id) if cursor == LATEST else cast(FeedPosition, cursor)
