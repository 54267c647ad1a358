"""Schemas of identify calls and batches.

Thousands of well-formed items in one body are the common case; :class:`Items` accepts them in one
pass. Whatever it does not accept goes to the item schema, which validates it and
reports the errors.
"""

from __future__ import annotations

from typing import Any

from marshmallow import ValidationError, fields, post_load, validate

from app.cohorts import Identify, usable_user_id
from app.cohorts.cohort import MAX_TRAIT_BYTES, text_problem
from app.web.http.fields import (
    MAX_ITEM_ERRORS,
    Base,
    Items,
    JsonObject,
    SentUserId,
    text_schema,
)


class Traits(fields.Field[dict[str, bool]]):
    """At least one trait. Names have 1 to 512 bytes of UTF-8, values are true or false."""

    def json_schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "minProperties": 1,
            "propertyNames": text_schema(MAX_TRAIT_BYTES),
            "additionalProperties": {"type": "boolean"},
            "example": {"[Amplitude] Power users: abc123": True},
        }

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> dict[str, bool]:
        if not isinstance(value, dict):
            raise ValidationError("Must be an object.")
        if not value:
            raise ValidationError("Must hold at least one trait.")
        errors: dict[str, list[str]] = {}
        for name, member in value.items():
            if problem := text_problem(name, MAX_TRAIT_BYTES):
                errors.setdefault(name, []).append(f"Trait name: {problem}")
            if not isinstance(member, bool):
                errors.setdefault(name, []).append("Must be true or false.")
            if len(errors) >= MAX_ITEM_ERRORS:
                break
        if errors:
            raise ValidationError(errors)
        return value


class IdentifySchema(Base):
    """One identify call. Loads to an Identify."""

    type = fields.String(
        required=True,
        validate=validate.Equal("identify", error="Must be identify."),
        metadata={"example": "identify"},
    )
    user_id = SentUserId(data_key="userId")
    traits = Traits(required=True)
    context = JsonObject()

    @post_load
    def make(self, data: dict[str, Any], **kwargs: Any) -> Identify:
        return Identify(data["user_id"], data["traits"], data.get("at_ms"))


_IDENTIFY = IdentifySchema()


def accept(item: Any, good_names: set[str], at_ms: int | None = None) -> Identify | None:
    """The identify call in ``item``, or None to leave it to the item schema.

    Args:
        item: decoded JSON.
        good_names: valid trait names of this request; new ones are added.
        at_ms: the time of the call, where the source has one.
    """
    try:
        traits, user_id = item["traits"], item.get("userId")
        if item["type"] != "identify" or type(item.get("context", traits)) is not dict:
            return None
        if not traits:
            return None
        for name, member in traits.items():
            if member is not True and member is not False:
                return None
            if name not in good_names:
                if text_problem(name, MAX_TRAIT_BYTES):
                    return None
                good_names.add(name)
    except (KeyError, TypeError, AttributeError):
        return None
    return Identify(usable_user_id(user_id), traits, at_ms)


class BatchSchema(Base):
    """``{"batch": [identify, …]}``. Loads to ``{"batch": [Identify, …]}``."""

    batch = Items(accept, _IDENTIFY.load, item=_IDENTIFY, required=True)
    context = JsonObject()
