"""A fast path for batches as Amplitude sends them.

A batch of a thousand users has some seven thousand JSON objects and strings, mostly the same traits
and context again and again. Creating them all takes longer than validating them, so repeated parts
are compared as bytes and decoded once. Anything not exactly of this form is left to
:class:`~app.web.ingest.identify_schema.BatchSchema`, which validates it and reports the errors.
docs/decisions/decoding.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from app.cohorts import Identify, UniformIdentifies
from app.cohorts.cohort import MAX_TRAIT_BYTES, MAX_USER_ID_BYTES, text_problem

# Other bodies are left to the schema immediately.
_BEGIN = b'{"batch"'
# A string of this length always fits: UTF-8 takes at most 4 bytes per character.
_SAFE_USER_ID_CHARACTERS = MAX_USER_ID_BYTES // 4
# Sorts after the empty string, and after any string that begins with an ASCII blank.
_FIRST_PRINTABLE = "!"


# msgspec would skip unknown fields without checking that they are valid JSON.
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


class _Body(_Strict):
    batch: list[_Call]
    context: _Context | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(_Body).decode
_decode_context = msgspec.json.Decoder(_Context).decode
_decode_traits = msgspec.json.Decoder(dict[str, bool]).decode


def accept_batch(raw: bytes, max_users: int) -> Sequence[Identify] | None:
    """The identify calls of a batch, or None to leave it to the schema.

    Args:
        raw: the request body.
        max_users: the most calls that a batch may hold.
    """
    if not raw.startswith(_BEGIN):
        return None
    try:
        plain = raw.isascii()
        if not plain:
            raw.decode()  # not all of it is decoded below
        calls = _decode(raw).batch
        if not 0 < len(calls) <= max_users:
            return None
        user_ids = [call.user_id for call in calls]
        if max(map(len, user_ids)) > _SAFE_USER_ID_CHARACTERS:
            return None
        if min(user_ids) < _FIRST_PRINTABLE:
            return None
        # NUL only occurs as an escape. Searching for a single byte first is fifty times faster.
        escaped = b"\\" in raw
        if escaped and b"\\u0000" in raw:
            return None
        if (escaped or not plain) and any(map(str.isspace, user_ids)):
            return None
        for context in _distinct(call.context for call in calls):
            _decode_context(context)
        decoded = {text: _decode_traits(text) for text in _distinct(call.traits for call in calls)}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    for traits in decoded.values():
        if not traits or any(text_problem(name, MAX_TRAIT_BYTES) for name in traits):
            return None
    if len(decoded) == 1:
        (traits,) = decoded.values()
        return UniformIdentifies(user_ids, traits)
    return [Identify(call.user_id, decoded[bytes(call.traits)]) for call in calls]


def _distinct(texts: Iterable[msgspec.Raw]) -> set[bytes]:
    """The distinct texts."""
    first, *others = texts
    # Comparing with the first is five times faster than a lookup in a set.
    return {bytes(first), *(bytes(text) for text in others if text != first)}
