"""Schemas of list-based calls."""

from __future__ import annotations

from typing import Any

from marshmallow import ValidationError, post_load

from app.cohorts.cohort import MAX_TRAIT_BYTES
from app.web.http.fields import Base, JsonObject, Text, sent_user_ids_field


class ListSchema(Base):
    """``{"name"}``, to create a list. The name is a trait name."""

    name = Text(
        MAX_TRAIT_BYTES,
        required=True,
        metadata={
            "description": "The trait name, at most 512 bytes of UTF-8. It ends with the id.",
            "example": "[Amplitude] Power users: abc123",
        },
    )
    context = JsonObject()


class ListUsersSchema(Base):
    """``{"userIds": […]}``, or ``user_ids``. Loads to the name that was sent and the ids."""

    json_schema = {  # noqa: RUF012
        "oneOf": [{"required": ["userIds"]}, {"required": ["user_ids"]}],
        "example": {"userIds": ["user1@example.com", "user2@example.com"]},
    }

    user_ids = sent_user_ids_field("userIds")
    user_ids_too = sent_user_ids_field("user_ids")
    context = JsonObject()

    @post_load
    def make(self, data: dict[str, Any], **kwargs: Any) -> tuple[str, list[str]]:
        if "user_ids" in data and "user_ids_too" in data:
            # One of them would be ignored silently.
            raise ValidationError({"user_ids": ["Send userIds or user_ids, not both."]})
        if "user_ids" in data:
            return "userIds", data["user_ids"]
        if "user_ids_too" in data:
            return "user_ids", data["user_ids_too"]
        raise ValidationError({"userIds": ["Missing data for required field."]})
