"""The cohorts that a failed request names, as far as they are recognisable.

A request that is refused, or fails before it is read, still belongs to its cohort: to its syncs,
and to what is known of its completeness.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from flask import Response, g, request

from app.cohorts import Cohort, Outcome
from app.cohorts.cohort import MAX_TRAIT_BYTES, text_problem
from app.errors import RateLimited
from app.services import services
from app.store import StoreError

# A refused body is not searched further than this.
_MAX_ITEMS, _MAX_TRAITS = 100, 100
_MAX_NAMED = 100
# Ids looked up in the store, with a call each.
_MAX_ASKED = 20
_MAX_LOGGED = 8
# Finds the id in a webhook that is not valid JSON, for example because of a quote in the name.
_COHORT_ID = re.compile(
    rb'["\']cohort_id["\']\s*:\s*(?:["\']([^"\'\\:]{1,512})["\']|(\d{1,16})\s*[,}])'
)


def name_cohorts(response: Response) -> Response:
    """Attribute a failed request to the known cohorts that it names.

    The id of an unknown one is recorded with the request only: invented ids must not fill the sync
    history.
    """
    if response.status_code < 400 or "outcome" in g or g.get("caller") is None:
        return response
    traits: dict[str, str] = {}
    unverified: list[str] = []
    unknown = ""
    is_available = response.status_code < 500 and response.status_code != RateLimited.status
    for number, (cohort_id, sent) in enumerate(_first_named().items()):
        may_ask = is_available and number < _MAX_ASKED
        if trait := _known_trait(cohort_id, may_ask):
            traits[cohort_id] = trait
        elif may_ask and cohort_id in sent:
            unknown = unknown or cohort_id
        elif not is_available:
            unverified.append(cohort_id)
    if traits or unverified:
        g.outcome = Outcome(traits, content=g.get("content", 0), unverified=tuple(unverified))
    if traits:
        g.event["cohorts"] = list(traits)[:_MAX_LOGGED]
    elif unknown:
        g.event["cohorts"] = [unknown]
    return response


def _known_trait(cohort_id: str, may_ask: bool) -> str | None:
    """The trait name of a known cohort: as last read, or if ``may_ask``, from the store."""
    registry, app_id = services().store.registry, g.caller.app_id
    trait = registry.last_trait(app_id, cohort_id)
    if trait is None and may_ask:
        with suppress(StoreError):
            trait = registry.trait(app_id, cohort_id)
    return trait


def _first_named() -> dict[str, str]:
    """The first valid ids that are named, each with the text that it comes from."""
    found: dict[str, str] = {}
    for cohort_id, sent in _named():
        if text_problem(cohort_id, MAX_TRAIT_BYTES) is None:
            found.setdefault(cohort_id, sent)
        if len(found) == _MAX_NAMED:
            break
    return found


def _named() -> Iterator[tuple[str, str]]:
    """The ids in the path and in the refused body, each with the text that it comes from.

    Some ten thousand at most. If the text does not contain the id, nobody sent it: it was derived
    from a name without one.
    """
    if list_id := (request.view_args or {}).get("list_id"):
        yield list_id, list_id
    body: Any = g.get("refused_body")
    if isinstance(body, bytes):
        if found := _COHORT_ID.search(body):
            cohort_id = (found[1] or found[2]).decode(errors="replace").strip()
            yield cohort_id, cohort_id
        return
    if not isinstance(body, dict):
        return
    cohort_id = body.get("cohort_id")
    if isinstance(cohort_id, str) or type(cohort_id) is int:
        yield str(cohort_id).strip(), str(cohort_id)
    if isinstance(name := body.get("name"), str):
        yield Cohort.from_trait(name)
    batch = body.get("batch")
    for item in [body, *(batch[:_MAX_ITEMS] if isinstance(batch, list) else [])]:
        traits = item.get("traits") if isinstance(item, dict) else None
        for name in list(traits)[:_MAX_TRAITS] if isinstance(traits, dict) else []:
            if isinstance(name, str) and text_problem(name, MAX_TRAIT_BYTES) is None:
                yield Cohort.from_trait(name)
