"""What schemathesis can't know from the description: cursors, and two rules beyond JSON Schema."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode

import schemathesis
from hypothesis import strategies
from schemathesis import Case, HookContext

MOST_TRAIT_BYTES = 512


def cursor(*parts: object) -> str:
    """A cursor as the service makes them. To callers it is opaque."""
    return urlsafe_b64encode(json.dumps(parts).encode()).rstrip(b"=").decode()


ids = strategies.text("ab/é:", min_size=1, max_size=20)
schemathesis.openapi.format(
    "members-cursor",
    strategies.builds(lambda ms, user: cursor("m", 0, ms, user), strategies.integers(0, 1e13), ids),
)
schemathesis.openapi.format(
    "cohorts-cursor", strategies.builds(lambda cohort: cursor("l", "id", cohort, cohort), ids)
)
for name, kind in (("syncs-cursor", "s"), ("requests-cursor", "r")):
    schemathesis.openapi.format(
        name, strategies.integers(0, 1000).map(lambda number, kind=kind: cursor(kind, number))
    )
schemathesis.openapi.format(
    "changes-cursor", strategies.sampled_from(["earliest", "latest", cursor("c", None)])
)


@schemathesis.hook
def filter_case(context: HookContext, case: Case) -> bool:
    """Leave out what fits the schemas and is refused, for a reason that no schema can say."""
    query = case.query if isinstance(case.query, dict) else {}
    body = case.body if isinstance(case.body, dict) else {}
    # A cursor is good for the order that it was made in, and these were made by id.
    other_order = "cursor" in query and query.get("sort", "id") != "id"
    # The trait name is put together from both, and limited as a whole.
    parts = (body.get("cohort_name"), body.get("cohort_id"))
    size = sum(len(str(part).encode(errors="replace")) for part in parts)
    return not other_order and size < MOST_TRAIT_BYTES - len("[Amplitude] : ")
