"""Schemas of the Segment protocol.

Sources: Segment's page "HTTP API Source", and what the protocol's libraries send. RudderStack's put
the traits of an identify call into its ``context``; both places are accepted. Applications send all
of a user's traits in one call; those that are not booleans say nothing about cohorts.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from marshmallow import ValidationError, fields, post_load

from app.cohorts import Identify, usable_user_id
from app.cohorts.cohort import MAX_TRAIT_BYTES, text_problem
from app.web.http.fields import MAX_ITEM_ERRORS, Base, Items, JsonObject
from app.web.ingest.identify_schema import IdentifySchema

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)

# Names that no boolean trait may have.
_BAD_NAME = f"^$|\\u0000|^[^\\u0000]{{{MAX_TRAIT_BYTES + 1}}}"
# How Segment's own destination names the trait of an Amplitude cohort.
_NAME_AND_ID = re.compile(r"\[Amplitude\] (.*) \(([^():]+)\)", re.DOTALL)


class SegmentCall(NamedTuple):
    """An identify call.

    Attributes:
        identify: None if it has no boolean trait.
        ignored: the number of its other traits.
    """

    identify: Identify | None
    ignored: int


class SegmentBatch(NamedTuple):
    """The calls of a batch by number.

    Attributes:
        identifies: the identify calls with boolean traits.
        without_cohorts: the other identify calls.
        others: the calls of other types.
        ignored: the number of traits that are not booleans.
    """

    identifies: dict[int, Identify]
    without_cohorts: list[int]
    others: list[int]
    ignored: int


@lru_cache(maxsize=4096)
def trait_name(sent: str) -> str:
    """The trait name by which the store knows a cohort.

    ``[Amplitude] {name} ({id})`` becomes ``[Amplitude] {name}: {id}``, as all other sources and
    readers have it.
    """
    match = _NAME_AND_ID.fullmatch(sent)
    if match is None or match[2].isspace():
        return sent
    return f"[Amplitude] {match[1]}: {match[2]}"


class CohortTraits(NamedTuple):
    """The boolean traits of a call, by their names in the store, and the number of others."""

    cohorts: dict[str, bool]
    ignored: int


class SegmentTraits(fields.Field[CohortTraits]):
    """Traits of any kind. Names of boolean ones have 1 to 512 bytes of UTF-8."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_none=True, load_default=lambda: _NO_TRAITS, **kwargs)

    def json_schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "additionalProperties": True,
            "patternProperties": {_BAD_NAME: {"not": {"type": "boolean"}}},
            "example": {"[Amplitude] Power users: abc123": True, "plan": "gold"},
        }

    def deserialize(self, value: Any, attr: Any = None, data: Any = None, **kwargs: Any) -> Any:
        return super().deserialize(value, attr, data, **kwargs) or _NO_TRAITS

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> CohortTraits:
        if not isinstance(value, dict):
            raise ValidationError("Must be an object.")
        booleans = {name: member for name, member in value.items() if isinstance(member, bool)}
        errors: dict[str, list[str]] = {}
        for name in booleans:
            if problem := text_problem(name, MAX_TRAIT_BYTES):
                errors[name] = [f"Trait name: {problem}"]
                if len(errors) >= MAX_ITEM_ERRORS:
                    break
        if errors:
            raise ValidationError(errors)
        return CohortTraits(
            {trait_name(name): member for name, member in booleans.items()},
            len(value) - len(booleans),
        )


_NO_TRAITS = CohortTraits({}, 0)


class Timestamp(fields.Field[int]):
    """A time in ISO 8601, loaded to ms since the epoch. Without an offset, it is in UTC."""

    def json_schema(self) -> dict[str, Any]:
        return {"type": "string", "format": "date-time", "example": "2026-01-01T00:00:00.000Z"}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> int:
        if not isinstance(value, str):
            raise ValidationError("Must be a time in ISO 8601, as a string.")
        try:
            return epoch_ms(value)
        except ValueError:
            raise ValidationError("Must be a time in ISO 8601.") from None


def epoch_ms(text: str) -> int:
    """Convert a time in ISO 8601 to ms since the epoch. Raises ValueError."""
    time = datetime.fromisoformat(text)
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // _MS


class SegmentIdentifySchema(IdentifySchema):
    """An identify call. Loads to a SegmentCall."""

    traits = SegmentTraits()  # type: ignore[assignment]
    at_ms = Timestamp(data_key="timestamp", allow_none=True)

    @post_load
    def make(self, data: dict[str, Any], **kwargs: Any) -> SegmentCall:
        return _call(data["user_id"], data["traits"], data.get("at_ms"))


class _ContextSchema(Base):
    traits = SegmentTraits()


class TraitsInContextSchema(SegmentIdentifySchema):
    """An identify call with its traits in the context, as sent by RudderStack's libraries."""

    json_schema = {"not": {"required": ["traits"]}}  # noqa: RUF012

    class Meta(Base.Meta):
        exclude = ("traits",)

    context = fields.Nested(_ContextSchema, required=True)  # type: ignore[assignment]

    @post_load
    def make(self, data: dict[str, Any], **kwargs: Any) -> SegmentCall:
        return _call(data["user_id"], data["context"]["traits"], data.get("at_ms"))


_IDENTIFY, _TRAITS_IN_CONTEXT = SegmentIdentifySchema(), TraitsInContextSchema()


def _call(user_id: str, traits: CohortTraits, at_ms: int | None) -> SegmentCall:
    identify = Identify(user_id, traits.cohorts, at_ms) if traits.cohorts else None
    return SegmentCall(identify, traits.ignored)


def identify_schema(call: Any) -> SegmentIdentifySchema:
    """The schema for an identify call, depending on where its traits are."""
    context = call.get("context") if isinstance(call, dict) else None
    if isinstance(context, dict) and "traits" in context and call.get("traits") is None:
        return _TRAITS_IN_CONTEXT
    return _IDENTIFY


def load_call(item: Any) -> SegmentCall | Literal["other"]:
    """Validate a call of a batch. Raises ValidationError."""
    kind = item.get("type") if isinstance(item, dict) else None
    if isinstance(kind, str) and kind not in ("", "identify"):
        return "other"
    call: SegmentCall = identify_schema(item).load(item)
    return call


def accept_call(item: Any, good_names: set[str]) -> SegmentCall | None:
    """The identify call in ``item``, or None to leave it to :func:`load_call`."""
    try:
        if item["type"] != "identify":
            return None
        traits, context = item.get("traits"), item.get("context", item)
        if type(context) is not dict:
            return None
        if traits is None:
            traits = context.get("traits")
        cohorts: dict[str, bool] = {}
        ignored = 0
        for name, member in traits.items():
            if member is True or member is False:
                if name not in good_names:
                    if text_problem(name, MAX_TRAIT_BYTES):
                        return None
                    good_names.add(name)
                cohorts[trait_name(name)] = member
            else:
                ignored += 1
        timestamp = item.get("timestamp")
        at_ms = None if timestamp is None else epoch_ms(timestamp)
    except (KeyError, TypeError, AttributeError, ValueError):
        return None
    user_id = usable_user_id(item.get("userId"))
    return _call(user_id, CohortTraits(cohorts, ignored), at_ms)


class OtherCallSchema(Base):
    """A call of any other type. It is counted as rejected."""

    type = fields.String(
        required=True, metadata={"minLength": 1, "not": {"const": "identify"}, "example": "track"}
    )


class SegmentBatchSchema(Base):
    """``{"batch": [call, …]}``. Loads to a SegmentBatch."""

    batch = Items(
        accept_call,
        load_call,
        item=(_IDENTIFY, _TRAITS_IN_CONTEXT, OtherCallSchema()),
        required=True,
    )
    context = JsonObject()

    @post_load
    def make(self, data: dict[str, Any], **kwargs: Any) -> SegmentBatch:
        identifies: dict[int, Identify] = {}
        without_cohorts, others, ignored = [], [], 0
        for n, call in enumerate(data["batch"]):
            if call == "other":
                others.append(n)
                continue
            ignored += call.ignored
            if call.identify is None:
                without_cohorts.append(n)
            else:
                identifies[n] = call.identify
        return SegmentBatch(identifies, without_cohorts, others, ignored)
