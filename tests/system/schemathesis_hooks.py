"""What schemathesis can't know from the description: cursors, and rules beyond JSON Schema."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import schemathesis
from hypothesis import strategies
from schemathesis import Case, CheckContext, HookContext, Response

MOST_TRAIT_BYTES = 512


def cursor(*parts: object) -> str:
    """A cursor as the service makes them. To callers it is opaque."""
    return urlsafe_b64encode(json.dumps(parts).encode()).rstrip(b"=").decode()


def parts_of(case: Case) -> list[Any]:
    """What is in the cursor of a list of cohorts; nothing where the query has none."""
    query = case.query if isinstance(case.query, dict) else {}
    try:
        sent = query["cursor"]
        parts = json.loads(urlsafe_b64decode(sent + "=" * (-len(sent) % 4)))
    except (KeyError, TypeError, ValueError):
        return []
    return parts if isinstance(parts, list) and parts[:1] == ["l"] else []


ids = strategies.text("ab/é:", min_size=1, max_size=20)
numbers = strategies.integers(0, 1e13)
# What cohorts can be sorted by, and the type of that.
SORTS = {
    "id": str,
    **dict.fromkeys(("name", "-name"), str),
    **dict.fromkeys(("members", "-members", "last_received", "-last_received"), int),
}
schemathesis.openapi.format(
    "members-cursor",
    strategies.builds(lambda ms, user: cursor("m", 0, ms, user), numbers, ids),
)
schemathesis.openapi.format(
    "cohorts-cursor",
    # Half of them are of a wrong type.
    strategies.builds(
        cursor,
        strategies.just("l"),
        strategies.sampled_from([*SORTS]),
        ids | numbers | strategies.booleans(),
        ids,
    ),
)
for name, kind in (("syncs-cursor", "s"), ("requests-cursor", "r")):
    schemathesis.openapi.format(
        name, strategies.integers(0, 1000).map(lambda number, kind=kind: cursor(kind, number))
    )
schemathesis.openapi.format(
    "changes-cursor", strategies.sampled_from(["earliest", "latest", cursor("c", None)])
)


@schemathesis.hook
def map_case(context: HookContext, case: Case) -> Case:
    """Ask for the order that the cursor was made in."""
    if case.meta.generation.mode.is_positive and (parts := parts_of(case)):
        case.query["sort"] = parts[1]
    return case


@schemathesis.check
def right_cursor_is_taken(context: CheckContext, response: Response, case: Case) -> None:
    """A list of cohorts may be refused for a cursor of a wrong type, and for nothing else."""
    of_list = case.operation.label == "GET /api/v1/cohorts"
    if of_list and case.meta.generation.mode.is_positive and response.status_code == 400:
        parts = parts_of(case)
        assert parts, "refused without a cursor"
        assert type(parts[2]) is not SORTS[parts[1]], "refused with a right cursor"


def has_whole_float(value: Any) -> bool:
    """Whether there is a number like 7.0: to JSON Schema an integer, but not an id."""
    if isinstance(value, dict):
        return any(map(has_whole_float, value.values()))
    if isinstance(value, list):
        return any(map(has_whole_float, value))
    return isinstance(value, float) and value.is_integer()


@schemathesis.hook
def filter_case(context: HookContext, case: Case) -> bool:
    """Leave out what fits the schemas and is refused, for a reason that no schema can say."""
    body = case.body if isinstance(case.body, dict) else {}
    # The trait name is put together from both, and limited as a whole.
    parts = (body.get("cohort_name"), body.get("cohort_id"))
    size = sum(len(str(part).encode(errors="replace")) for part in parts)
    # The format of a header is not always kept to.
    event_id = (case.headers or {}).get("Last-Event-ID", "latest")
    is_cursor = event_id in ("earliest", "latest") or event_id.startswith(cursor("c")[:4])
    is_right = is_cursor or case.meta.generation.mode.is_negative
    if case.meta.generation.mode.is_positive and has_whole_float(body):
        return False
    return is_right and size < MOST_TRAIT_BYTES - len("[Amplitude] : ")
