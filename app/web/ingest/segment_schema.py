"""Schemas of the Segment protocol.

Sources: Segment's page "HTTP API Source", and what the protocol's libraries send. RudderStack's put
the traits of an identify call into its ``context``; both places are accepted.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

from marshmallow import ValidationError, fields, post_load

from app.cohorts import Identify
from app.web.http.fields import Base, Items, JsonObject
from app.web.ingest.identify_schema import IdentifySchema, Traits, accept

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)

Call = Identify | Literal["other"]


class SegmentBatch(NamedTuple):
    """The identify calls of a batch by number, and the numbers of the other calls."""

    identifies: dict[int, Identify]
    others: list[int]


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
    """An identify call. Loads to an Identify."""

    at_ms = Timestamp(data_key="timestamp", allow_none=True)


class _ContextSchema(Base):
    traits = Traits(required=True)


class TraitsInContextSchema(SegmentIdentifySchema):
    """An identify call with its traits in the context, as sent by RudderStack's libraries."""

    json_schema = {"not": {"required": ["traits"]}}  # noqa: RUF012

    class Meta(Base.Meta):
        exclude = ("traits",)

    context = fields.Nested(_ContextSchema, required=True)  # type: ignore[assignment]

    @post_load
    def make(self, data: dict[str, Any], **kwargs: Any) -> Identify:
        return Identify(data["user_id"], data["context"]["traits"], data.get("at_ms"))


_IDENTIFY, _TRAITS_IN_CONTEXT = SegmentIdentifySchema(), TraitsInContextSchema()


def identify_schema(call: Any) -> SegmentIdentifySchema:
    """The schema for an identify call, depending on where its traits are."""
    context = call.get("context") if isinstance(call, dict) else None
    if isinstance(context, dict) and "traits" in context and "traits" not in call:
        return _TRAITS_IN_CONTEXT
    return _IDENTIFY


def load_call(item: Any) -> Call:
    """Validate a call of a batch. Raises ValidationError."""
    kind = item.get("type") if isinstance(item, dict) else None
    if isinstance(kind, str) and kind not in ("", "identify"):
        return "other"
    call: Identify = identify_schema(item).load(item)
    return call


def accept_call(item: Any, good_names: set[str]) -> Call | None:
    """The identify call in ``item``, or None to leave it to :func:`load_call`."""
    try:
        if "traits" not in item:
            item = {**item, "traits": item["context"]["traits"]}
        timestamp = item.get("timestamp")
        at_ms = None if timestamp is None else epoch_ms(timestamp)
    except (KeyError, TypeError, AttributeError, ValueError):
        return None
    return accept(item, good_names, at_ms)


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
        calls = dict(enumerate(data["batch"]))
        identifies = {n: call for n, call in calls.items() if isinstance(call, Identify)}
        return SegmentBatch(identifies, [n for n in calls if n not in identifies])
