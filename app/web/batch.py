"""A batch as Amplitude sends it, decoded in one pass to nothing but what is needed of it.

A batch of a thousand users is some seven thousand JSON objects and strings. Most are the same
context again and again: making them for the item schema, and throwing them away, took more time
than the schema's own look at them. What is not exactly of this form, or not well-formed, is left
to :class:`~app.web.schemas.BatchSchema`, for its verdict and its words.
docs/decisions/decoding.md has the measurement.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from app.cohorts.cohort import MAX_TRAIT_BYTES, text_problem
from app.web.schemas import ANY_USER_ID_FITS

# What a batch begins with. Other bodies are not even tried.
_BEGIN = b'{"batch"'


# Without fields that nobody knows: these would be skipped, and not checked as JSON must be.
class _Strict(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    pass


class _Integration(_Strict):
    name: str = ""
    version: str = ""


class _Context(_Strict):
    integration: _Integration | msgspec.UnsetType = msgspec.UNSET


class Call(_Strict):
    """One identify call; a :class:`~app.cohorts.Statement` as of its arrival."""

    type: Literal["identify"]
    user_id: str = msgspec.field(name="userId")
    traits: Mapping[str, bool]
    context: _Context | msgspec.UnsetType = msgspec.UNSET

    @property
    def at_ms(self) -> None:
        return None


class _Batch(_Strict):
    batch: list[Call]
    context: _Context | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(_Batch).decode


def accept_batch(raw: bytes, max_users: int) -> list[Call] | None:
    """The calls of a batch, or None where the schema must look at it.

    Args:
        raw: a request's body.
        max_users: how many calls it may hold.
    """
    if not raw.startswith(_BEGIN):
        return None
    try:
        calls = _decode(raw).batch
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not 0 < len(calls) <= max_users:
        return None
    sizes = [len(call.user_id) for call in calls]
    # NUL can only stand there as an escape.
    if min(sizes) == 0 or max(sizes) > ANY_USER_ID_FITS or b"\\u0000" in raw:
        return None
    first = calls[0].traits
    several = [call.traits for call in calls if call.traits != first]
    for traits in (first, *several):
        if not traits or any(text_problem(name, MAX_TRAIT_BYTES) for name in traits):
            return None
    return calls
