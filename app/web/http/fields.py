"""Fields of bodies and queries, each with its JSON Schema for the API's description.

Limits in bytes stand there as ones in characters: JSON Schema knows no bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar, cast

from marshmallow import EXCLUDE, Schema, ValidationError, fields
from marshmallow.exceptions import SCHEMA

from app.cohorts.cohort import MAX_USER_ID_BYTES, text_problem

# Errors after which a batch is not looked at any further.
MAX_ITEM_ERRORS = 50
# Characters of a user id that is short enough in any case: UTF-8 takes at most 4 bytes for one.
ANY_USER_ID_FITS = MAX_USER_ID_BYTES // 4
Item = TypeVar("Item")
_WITHOUT_NUL = "^[^\\u0000]*$"
_DIGITS = re.compile(r"[0-9]{1,16}")
_MOST_WHOLE = 10**16 - 1


def text_schema(max_bytes: int, *, empty: bool = False) -> dict[str, Any]:
    """A string of at most so many bytes of UTF-8, without NUL."""
    return {
        "type": "string",
        "minLength": 0 if empty else 1,
        "maxLength": max_bytes,
        "pattern": _WITHOUT_NUL,
    }


class Text(fields.Field[str]):
    """A string of 1 to ``max_bytes`` bytes of UTF-8, without NUL; where ``empty``, also none."""

    def __init__(self, max_bytes: int, *, empty: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._max_bytes = max_bytes
        self._empty = empty

    def json_schema(self) -> dict[str, Any]:
        return text_schema(self._max_bytes, empty=self._empty)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        if not (self._empty and value == "") and (problem := text_problem(value, self._max_bytes)):
            raise ValidationError(problem)
        return str(value)


class UserId(Text):
    """A user id: a string of 1 to 1,024 bytes of UTF-8, without NUL."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(MAX_USER_ID_BYTES, **kwargs)


class JsonObject(fields.Field[dict[str, Any]]):
    """Any JSON object."""

    def json_schema(self) -> dict[str, Any]:
        return {"type": "object"}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValidationError("Must be an object.")
        return value


class YesOrNo(fields.Field[bool]):
    """A parameter that is ``true`` or ``false``."""

    def json_schema(self) -> dict[str, Any]:
        return {"type": "boolean"}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> bool:
        if value not in ("true", "false"):
            raise ValidationError("Must be true or false.")
        return bool(value == "true")


class Whole(fields.Integer):
    """A whole number, in decimal digits only: Python's ``int`` also takes ``1_0`` and `` 1``."""

    def json_schema(self) -> dict[str, Any]:
        # By default; a Range says something narrower.
        return {"minimum": 0, "maximum": _MOST_WHOLE}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> int:
        if not isinstance(value, str) or not _DIGITS.fullmatch(value):
            raise self.make_error("invalid")
        return super()._deserialize(value, attr, data, **kwargs)


class Base(Schema):
    """What all bodies and items have in common."""

    error_messages = {"type": "Must be an object."}  # noqa: RUF012  marshmallow's own way

    class Meta:
        unknown = EXCLUDE  # senders add fields

    def handle_error(self, error: ValidationError, data: Any, **kwargs: Any) -> None:
        """Keep what concerns the object as a whole under None: a trait may be named ``_schema``."""
        messages = cast(dict[Any, Any], error.messages)
        if SCHEMA in messages:
            messages[None] = messages.pop(SCHEMA)


class Items(fields.Field[list[Item]]):
    """A list of items that each stand for one user, of at most ``max_users`` where that is set.

    Well-formed items are accepted by ``accept``, in one loop; a property test of each use holds
    that it agrees with the item schema.

    Args:
        accept: the item that decoded JSON is, or None where the item schema must look at it. Its
            second argument is the same set for all items of a list, to remember names in.
        load: the item schema's verdict: the item, or a ValidationError.
        item: what an item looks like, for the API's description: one of these.
    """

    max_users: int | None = None

    def __init__(
        self,
        accept: Callable[[Any, set[str]], Item | None],
        load: Callable[[Any], Item],
        *,
        item: Schema | fields.Field[Any] | Sequence[Schema],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.item = item
        self._accept = accept
        self._load = load

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> list[Item]:
        if not isinstance(value, list):
            raise ValidationError("Must be a list.")
        if self.max_users is not None and len(value) > self.max_users:
            raise ValidationError(f"Must hold at most {self.max_users} users.")
        accept, good_names = self._accept, set[str]()
        items: list[Item] = []
        errors: dict[int, Any] = {}
        for place, given in enumerate(value):
            item = accept(given, good_names)
            if item is None:
                try:
                    item = self._load(given)
                except ValidationError as error:
                    errors[place] = error.messages
                    if len(errors) >= MAX_ITEM_ERRORS:
                        break
                    continue
            items.append(item)
        if errors:
            raise ValidationError(errors)
        return items


def accept_user_id(value: Any, seen: set[str]) -> str | None:
    """The user id that ``value`` is, or None where :class:`UserId` must look at it."""
    try:
        if "\0" in value or not 0 < len(value) <= ANY_USER_ID_FITS:
            return None
        if not value.isascii():
            value.encode()
    except (TypeError, AttributeError, UnicodeEncodeError):
        return None
    return cast(str, value)


def user_ids_field(data_key: str, **kwargs: Any) -> Items[str]:
    """A list of user ids."""
    user_id = UserId()
    return Items(
        accept_user_id,
        user_id.deserialize,
        item=user_id,
        data_key=data_key,
        metadata={"example": ["user1@example.com", "user2@example.com"]},
        **kwargs,
    )


class Query(Schema):
    """Parameters of a query. Those that a call doesn't know are ignored."""

    class Meta:
        unknown = EXCLUDE


@cache
def limited(schema: type[Schema], max_users: int) -> Schema:
    """A schema whose lists of items hold at most ``max_users``."""
    made = schema()
    for field in made.fields.values():
        if isinstance(field, Items):
            field.max_users = max_users
    return made
