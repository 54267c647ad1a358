"""Exports: a whole cohort as a stream, in constant memory."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from flask import Blueprint, Response, g
from orjson import OPT_APPEND_NEWLINE, dumps

from app.auth.authenticate import READ, requires
from app.cohorts import Status
from app.errors import InvalidParameter, UnknownCohort
from app.store import Member, Store, StoreError
from app.web.api.lookup import known_cohort, store
from app.web.http import fair_queue
from app.web.http.contract import cohort_in_path, describes

blueprint = Blueprint("export", __name__, url_prefix="/api/v1")

NDJSON, CSV = "application/x-ndjson", "text/csv"

# Spreadsheets treat a cell that begins with one of these as a formula, even after spaces. The quote
# itself is included so that removing one leading quote restores every id.
_FORMULA = frozenset("=+-@\uff1d\uff0b\uff0d\uff20'\t\r\n ")


@blueprint.get("/cohorts/<segment:cohort_id>/members.ndjson")
@requires(READ)
@describes(
    *(InvalidParameter, UnknownCohort),
    media_type=NDJSON,
    example='{"userId":"user1@example.com","since":1767225600000}\n',
)
def export_ndjson(cohort_id: str) -> Response:
    """All members of a cohort, one JSON object per line."""
    return stream_members(known_cohort(cohort_in_path(cohort_id)), NDJSON)


@blueprint.get("/cohorts/<segment:cohort_id>/members.csv")
@requires(READ)
@describes(
    *(InvalidParameter, UnknownCohort),
    media_type=CSV,
    example='"user_id","since"\r\n"user1@example.com",1767225600000\r\n',
)
def export_csv(cohort_id: str) -> Response:
    """All members of a cohort as CSV, safe to open in a spreadsheet."""
    return stream_members(known_cohort(cohort_in_path(cohort_id)), CSV)


def stream_members(cohort_id: str, media_type: str) -> Response:
    """All members of a known cohort, as NDJSON or CSV."""
    render = _ndjson if media_type == NDJSON else _csv
    pages = fair_queue.in_pieces(_all_members(store(), g.caller.app_id, cohort_id))
    # Read now: once the reply has begun, an error can no longer be reported.
    first = list(islice(pages, 1))
    # If the store fails midway, the connection is aborted: a part must not look complete.
    body = render(chain(first, pages))
    return Response(body, mimetype=media_type, headers={"Cache-Control": "no-store"})


def _all_members(current: Store, app_id: str, cohort_id: str) -> Iterator[list[Member]]:
    """All members, some at a time.

    Raises:
        StoreError: some are missing, as the cohort was deleted or lost during the export.
    """
    before = current.registry.find(app_id, cohort_id)
    yield from current.lookups.all_members(app_id, cohort_id)
    now = current.registry.find(app_id, cohort_id)
    is_same = now and before and now.first_ms == before.first_ms
    if not is_same or (now and now.status is Status.DELETING):
        raise StoreError("The cohort was deleted or lost during the export.")


def _ndjson(pages: Iterable[list[Member]]) -> Iterator[bytes]:
    for page in pages:
        yield b"".join(
            dumps({"userId": user_id, "since": since}, option=OPT_APPEND_NEWLINE)
            for user_id, since in page
        )


def csv_of_users(user_ids: Iterable[str], reason: str) -> bytes:
    """Users who were left out for a reason, as CSV, safe to open in a spreadsheet."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(("user_id", "reason"))
    writer.writerows((_cell(user_id), reason) for user_id in user_ids)
    return buffer.getvalue().encode()


def _cell(user_id: str) -> str:
    return f"'{user_id}" if user_id[0] in _FORMULA else user_id


def _csv(pages: Iterable[list[Member]]) -> Iterator[bytes]:
    buffer = io.StringIO()
    # All ids are quoted: in some locales, spreadsheets split cells at semicolons.
    writer = csv.writer(buffer, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(("user_id", "since"))
    for page in pages:
        writer.writerows((_cell(user_id), since) for user_id, since in page)
        yield buffer.getvalue().encode()
        buffer.seek(0)
        buffer.truncate()
    if rest := buffer.getvalue():
        yield rest.encode()
