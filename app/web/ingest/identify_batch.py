"""A batch as Amplitude sends it, decoded in one pass to nothing but what is needed of it.

A batch of a thousand users is some seven thousand JSON objects and strings. Most are the same
traits and the same context again and again: making them for the item schema, and throwing them
away, took more time than the schema's own look at them. Here they are compared as the bytes that
they are, and decoded once. What is not exactly of this form, or not well-formed, is left to
:class:`~app.web.ingest.identify_schema.BatchSchema`, for its verdict and its words.
docs/decisions/decoding.md has the measurement.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from app.cohorts import Identify, UniformIdentifies
from app.cohorts.cohort import MAX_TRAIT_BYTES, text_problem
from app.web.http.fields import SAFE_USER_ID_CHARACTERS

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


class _Call(_Strict):
    type: Literal["identify"]
    user_id: str = msgspec.field(name="userId")
    traits: msgspec.Raw
    context: msgspec.Raw = msgspec.Raw(b"{}")


class _Batch(_Strict):
    batch: list[_Call]
    context: _Context | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(_Batch).decode
_decode_context = msgspec.json.Decoder(_Context).decode
_decode_traits = msgspec.json.Decoder(dict[str, bool]).decode


def accept_batch(raw: bytes, max_users: int) -> Sequence[Identify] | None:
    """The calls of a batch, or None where the schema must look at it.

    Args:
        raw: a request's body.
        max_users: how many calls it may hold.
    """
    if not raw.startswith(_BEGIN):
        return None
    try:
        if not raw.isascii():
            raw.decode()  # what is not decoded below is not looked at so closely
        calls = _decode(raw).batch
        if not 0 < len(calls) <= max_users:
            return None
        user_ids = [call.user_id for call in calls]
        sizes = list(map(len, user_ids))
        if min(sizes) == 0 or max(sizes) > SAFE_USER_ID_CHARACTERS:
            return None
        # NUL can only stand there as an escape. To look for one byte takes a fiftieth of the time.
        if b"\\" in raw and b"\\u0000" in raw:
            return None
        for context in _distinct(call.context for call in calls):
            _decode_context(context)
        said = {text: _decode_traits(text) for text in _distinct(call.traits for call in calls)}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    for traits in said.values():
        if not traits or any(text_problem(name, MAX_TRAIT_BYTES) for name in traits):
            return None
    if len(said) == 1:
        (traits,) = said.values()
        return UniformIdentifies(user_ids, traits)
    return [Identify(call.user_id, said[bytes(call.traits)]) for call in calls]


def _distinct(texts: Iterable[msgspec.Raw]) -> set[bytes]:
    """The texts that differ in any byte."""
    first, *others = texts
    # To compare two takes a fifth of what it takes to look one up in a set.
    return {bytes(first), *(bytes(text) for text in others if text != first)}
