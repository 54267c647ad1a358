"""Schemas of Cohort Webhooks.

Amplitude fills in a template that its customer may edit, so a number may arrive as a string and
vice versa. Source: Amplitude's page "Cohort Webhooks".
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

from marshmallow import ValidationError, fields, post_load

from app.cohorts import UniformIdentifies, usable_user_id
from app.cohorts.cohort import MAX_TRAIT_BYTES, text_problem
from app.web.http.body import THOUSANDS, THOUSANDS_HINT
from app.web.http.fields import Base, Id, Items, SentUserId, Text

MAX_MESSAGE_ID_BYTES = 256
_TRAIT = "[Amplitude] {}: {}"
_COHORT_ID = "^[^\\u0000:]*[^\\u0000:\\s][^\\u0000:]*$"
_NUMBER = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?")
# In seconds the year 5138, in milliseconds 1973.
_LEAST_MS = 10**11
_LATEST_MS = 10**14


class Webhook(NamedTuple):
    """One message: its identify calls, and its id or ""."""

    identifies: UniformIdentifies
    message_id: str


class CohortId(Id):
    """A cohort's id. With a colon, the trait name would be that of another cohort."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(MAX_TRAIT_BYTES, **kwargs)

    def json_schema(self) -> dict[str, Any]:
        described = super().json_schema()
        described["anyOf"][0]["pattern"] = _COHORT_ID
        return described

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        cohort_id = super()._deserialize(value, attr, data, **kwargs)
        if ":" in cohort_id:
            raise ValidationError("Must not contain a colon.")
        return cohort_id


class InCohort(fields.Field[bool]):
    """True or false, also as a string."""

    def json_schema(self) -> dict[str, Any]:
        # Client generators don't know an enum of several types.
        text = {"type": "string", "enum": ["true", "false"]}
        return {"anyOf": [{"type": "boolean"}, text], "example": True}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> bool:
        if isinstance(value, bool):
            return value
        if value in ("true", "false"):
            return bool(value == "true")
        raise ValidationError("Must be true or false.")


class EpochTime(fields.Field[int | None]):
    """Seconds since the epoch, as a number or a string, loaded to ms; None if it is empty.

    Numbers from 1e11 on are taken as milliseconds.
    """

    def json_schema(self) -> dict[str, Any]:
        number = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": _LATEST_MS}
        digits = {"type": "string", "pattern": f"^({_NUMBER.pattern})?$"}
        return {"anyOf": [number, digits], "example": "1767225600"}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> int | None:
        if value == "":
            return None
        number = math.nan
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            number = float(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            number = value
        if not 0 < number < _LATEST_MS:
            hint = THOUSANDS_HINT if isinstance(value, str) and THOUSANDS.fullmatch(value) else ""
            raise ValidationError(f"Must be seconds (or milliseconds) since 1970, UTC{hint}.")
        return round(number if number >= _LEAST_MS else number * 1000)


class UserSchema(Base):
    """``{"user_id", …}``. Loads to the user id."""

    user_id = SentUserId()

    @post_load
    def make(self, data: dict[str, Any], **kwargs: Any) -> str:
        return str(data["user_id"])


def accept_user(item: Any, seen: set[str]) -> str | None:
    """The user id in ``item``, "" if it is not usable; None to leave it to the item schema."""
    return usable_user_id(item.get("user_id")) if type(item) is dict else None


_USER = UserSchema()


class WebhookSchema(Base):
    """The default body of a Cohort Webhook. Loads to a Webhook."""

    cohort_name = Text(
        MAX_TRAIT_BYTES,
        empty=True,
        required=True,
        metadata={
            "description": "The cohort's name. With the id, it forms the trait name, which has at "
            "most 512 bytes of UTF-8.",
            "example": "Power users",
        },
    )
    cohort_id = CohortId(required=True)
    in_cohort = InCohort(required=True)
    computed_time = EpochTime(allow_none=True)
    message_id = Id(
        MAX_MESSAGE_ID_BYTES,
        empty=True,
        allow_none=True,
        metadata={"example": "9baaa88f-9d46-4ee5-a946-be0c6aea0046::enter::0"},
    )
    users = Items(accept_user, _USER.load, item=_USER, required=True)

    @post_load
    def make(self, data: dict[str, Any], **kwargs: Any) -> Webhook:
        # The trait name that property-based calls have for the same cohort.
        trait = _TRAIT.format(data["cohort_name"], data["cohort_id"])
        if problem := text_problem(trait, MAX_TRAIT_BYTES):
            raise ValidationError(
                f"The trait name, formed from the cohort's name and id, is invalid: {problem}",
                "cohort_name",
            )
        traits = {trait: data["in_cohort"]}
        at_ms = data.get("computed_time")
        return Webhook(
            UniformIdentifies(data["users"], traits, at_ms),
            data.get("message_id") or "",
        )
