"""What the bodies of identify and batch calls must look like.

Marshmallow is the one validator. The common case, thousands of well-formed items in one batch, is
accepted by one pass of :class:`Identifies`; whatever it does not accept goes to the ordinary item
schema, for its verdict and its words.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

from marshmallow import EXCLUDE, Schema, ValidationError, fields, post_load, validate

from app.cohorts import Identify
from app.cohorts.cohort import MAX_TRAIT_BYTES, MAX_USER_ID_BYTES, text_problem

# Errors after which a batch is not looked at any further.
MAX_ITEM_ERRORS = 50

_ANY_USER_ID_FITS = MAX_USER_ID_BYTES // 4  # characters; UTF-8 takes at most 4 bytes for one


class UserId(fields.Field[str]):
    """A user id: a string of 1 to 1,024 bytes of UTF-8, without NUL."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        if problem := text_problem(value, MAX_USER_ID_BYTES):
            raise ValidationError(problem)
        return str(value)


class Traits(fields.Field[dict[str, bool]]):
    """At least one trait; names of 1 to 512 bytes of UTF-8, values true or false."""

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


class JsonObject(fields.Field[dict[str, Any]]):
    """Any JSON object."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValidationError("Must be an object.")
        return value


class _Base(Schema):
    class Meta:
        unknown = EXCLUDE  # senders add fields


class IdentifySchema(_Base):
    """One identify call. Loads to an Identify."""

    type = fields.String(
        required=True, validate=validate.Equal("identify", error="Must be identify.")
    )
    user_id = UserId(data_key="userId", required=True)
    traits = Traits(required=True)
    context = JsonObject()

    @post_load
    def make(self, data: dict[str, Any], **kwargs: Any) -> Identify:
        return Identify(data["user_id"], data["traits"])


class Identifies(fields.Field[list[Identify]]):
    """A list of identify calls, of at most ``max_users`` where that is set.

    Well-formed items are accepted here, in one loop; a property test holds that this loop and the
    item schema agree.
    """

    item_schema = IdentifySchema()

    max_users: int | None = None

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> list[Identify]:
        if not isinstance(value, list):
            raise ValidationError("Must be a list.")
        if self.max_users is not None and len(value) > self.max_users:
            raise ValidationError(f"Must hold at most {self.max_users} users.")
        identifies: list[Identify] = []
        errors: dict[int, Any] = {}
        good_names: set[str] = set()
        for place, item in enumerate(value):
            identify = accept(item, good_names)
            if identify is None:
                try:
                    identify = self.item_schema.load(item)
                except ValidationError as error:
                    errors[place] = error.messages
                    if len(errors) >= MAX_ITEM_ERRORS:
                        break
                    continue
            identifies.append(identify)
        if errors:
            raise ValidationError(errors)
        return identifies


def accept(item: Any, good_names: set[str]) -> Identify | None:
    """The identify call that ``item`` is, or None where the item schema must look at it.

    Args:
        item: decoded JSON.
        good_names: trait names of this request that were looked at; grows.
    """
    try:
        user_id, traits = item["userId"], item["traits"]
        if item["type"] != "identify" or type(item.get("context", traits)) is not dict:
            return None
        if "\0" in user_id or not 0 < len(user_id) <= _ANY_USER_ID_FITS or not traits:
            return None
        user_id.encode()
        for name, member in traits.items():
            if member is not True and member is not False:
                return None
            if name not in good_names:
                if text_problem(name, MAX_TRAIT_BYTES):
                    return None
                good_names.add(name)
    except (KeyError, TypeError, AttributeError, UnicodeEncodeError):
        return None
    return Identify(user_id, traits)


class BatchSchema(_Base):
    """``{"batch": [identify, …]}``. Loads to ``{"batch": [Identify, …]}``."""

    batch = Identifies(required=True)
    context = JsonObject()


class UserIds(fields.Field[list[str]]):
    """A list of user ids, of at most ``max_users`` where that is set."""

    max_users: int | None = None

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> list[str]:
        if not isinstance(value, list):
            raise ValidationError("Must be a list.")
        if self.max_users is not None and len(value) > self.max_users:
            raise ValidationError(f"Must hold at most {self.max_users} users.")
        errors: dict[int, list[str]] = {}
        for place, user_id in enumerate(value):
            if problem := text_problem(user_id, MAX_USER_ID_BYTES):
                errors[place] = [problem]
                if len(errors) >= MAX_ITEM_ERRORS:
                    break
        if errors:
            raise ValidationError(errors)
        return value


class TraitName(fields.Field[str]):
    """A trait name: a string of 1 to 512 bytes of UTF-8, without NUL."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        if problem := text_problem(value, MAX_TRAIT_BYTES):
            raise ValidationError(problem)
        return str(value)


class ListSchema(_Base):
    """``{"name"}``: the creation of a list. The name is a trait name."""

    name = TraitName(required=True)
    context = JsonObject()


class ListUsersSchema(_Base):
    """``{"userIds": […]}``, or ``user_ids``. Loads to the key that was sent and the ids."""

    user_ids = UserIds(data_key="userIds")
    user_ids_too = UserIds(data_key="user_ids")
    context = JsonObject()

    @post_load
    def make(self, data: dict[str, Any], **kwargs: Any) -> tuple[str, list[str]]:
        if "user_ids" in data:
            return "userIds", data["user_ids"]
        if "user_ids_too" in data:
            return "user_ids", data["user_ids_too"]
        raise ValidationError({"userIds": ["Missing data for required field."]})


@cache
def list_users_schema(max_users: int) -> ListUsersSchema:
    """The schema of at most ``max_users`` users of a list."""
    schema = ListUsersSchema()
    for name in ("user_ids", "user_ids_too"):
        cast(UserIds, schema.fields[name]).max_users = max_users
    return schema


@cache
def batch_schema(max_users: int) -> BatchSchema:
    """The schema of a batch of at most ``max_users``."""
    schema = BatchSchema()
    cast(Identifies, schema.fields["batch"]).max_users = max_users
    return schema
