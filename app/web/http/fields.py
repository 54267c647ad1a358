"""Fields of request bodies and queries.

``json_schema`` is a field's JSON Schema, for the API description. JSON Schema cannot limit bytes,
so limits in bytes appear there as limits in characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, TypeVar, cast

from marshmallow import EXCLUDE, Schema, ValidationError, fields
from marshmallow.exceptions import SCHEMA

from app.cohorts import usable_user_id
from app.cohorts.cohort import MAX_USER_ID_BYTES, text_problem
from app.cohorts.membership import MAX_WHOLE_ID

# Validation of a list stops after this many errors.
MAX_ITEM_ERRORS = 50
Item = TypeVar("Item")
_WITHOUT_NUL = "^[^\\u0000]*$"
_NOT_BLANK = "^[^\\u0000]*[^\\u0000\\s][^\\u0000]*$"
_DIGITS = re.compile(r"[0-9]{1,16}")
_MAX_WHOLE = 10**16 - 1


def text_schema(max_bytes: int, *, empty: bool = False) -> dict[str, Any]:
    """The JSON Schema of a string of at most ``max_bytes`` bytes of UTF-8, without NUL."""
    return {
        "type": "string",
        "minLength": 0 if empty else 1,
        "maxLength": max_bytes,
        "pattern": _WITHOUT_NUL,
    }


class Text(fields.Field[str]):
    """A string of 1 to ``max_bytes`` bytes of UTF-8, without NUL; ``empty`` allows an empty one."""

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


class Id(Text):
    """An id, as a string or a whole number. It may be blank only if ``empty`` is allowed."""

    def json_schema(self) -> dict[str, Any]:
        text = super().json_schema()
        if not self._empty:
            text["pattern"] = _NOT_BLANK
        whole = {"type": "integer", "minimum": -MAX_WHOLE_ID, "maximum": MAX_WHOLE_ID}
        return {"anyOf": [text, whole], "example": "abc123"}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        if type(value) is int and abs(value) <= MAX_WHOLE_ID:
            return str(value)
        if not isinstance(value, str):
            raise ValidationError("Must be a string or a whole number up to 2^53.")
        if value.isspace() and not self._empty:
            raise ValidationError("Must not be blank.")
        return super()._deserialize(value, attr, data, **kwargs)


class SentUserId(fields.Field[str]):
    """The user id of one item of many. Never an error: loads to "" if it is not usable.

    So a bad id costs the others nothing. :func:`~app.web.ingest.apply.apply` reports the item.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_none=True, **kwargs)

    def json_schema(self) -> dict[str, Any]:
        return {
            "description": "A string of 1 to 1,024 bytes of UTF-8, not blank and without NUL, or a "
            f"whole number up to {MAX_WHOLE_ID}, which counts as its digits. Anything else, "
            "or nothing, is skipped with reason `invalid_user_id`.",
            "example": "user1@example.com",
        }

    def deserialize(self, value: Any, attr: Any = None, data: Any = None, **kwargs: Any) -> str:
        return usable_user_id(value)


class JsonObject(fields.Field[dict[str, Any]]):
    """Any JSON object."""

    def json_schema(self) -> dict[str, Any]:
        return {"type": "object"}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValidationError("Must be an object.")
        return value


class YesOrNo(fields.Field[bool]):
    """A query parameter that is ``true`` or ``false``."""

    def json_schema(self) -> dict[str, Any]:
        return {"type": "boolean"}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> bool:
        if value not in ("true", "false"):
            raise ValidationError("Must be true or false.")
        return bool(value == "true")


class Whole(fields.Integer):
    """A whole number in decimal digits: Python's ``int`` would also accept ``1_0`` and `` 1``."""

    def json_schema(self) -> dict[str, Any]:
        # The default; a Range narrows it.
        return {"minimum": 0, "maximum": _MAX_WHOLE}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> int:
        if not isinstance(value, str) or not _DIGITS.fullmatch(value):
            raise self.make_error("invalid")
        return super()._deserialize(value, attr, data, **kwargs)


class Base(Schema):
    """Base class of the schemas of bodies and items."""

    error_messages = {"type": "Must be an object."}  # noqa: RUF012  as marshmallow declares it

    class Meta:
        unknown = EXCLUDE  # senders add fields

    def handle_error(self, error: ValidationError, data: Any, **kwargs: Any) -> None:
        """File errors about the object itself under None: a trait may be named ``_schema``."""
        messages = cast(dict[Any, Any], error.messages)
        if SCHEMA in messages:
            messages[None] = messages.pop(SCHEMA)


class Items(fields.Field[list[Item]]):
    """A list of items that each stand for one user.

    Well-formed items take a fast path, ``accept``. For each use of it, a property test proves that
    it agrees with the item schema.

    Args:
        accept: returns the item for a decoded JSON value, or None to leave it to ``load``. Its
            second argument is a set shared by all items of a list, to remember valid names.
        load: validates with the item schema; returns the item or raises ValidationError.
        item: schemas of an item, for the API description.

    Attributes:
        max_users: the most items that the list may hold; None for any number.
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
            raise ValidationError(f"Must hold at most {self.max_users:,} users.")
        accept, good_names = self._accept, set[str]()
        items: list[Item] = []
        errors: dict[int, Any] = {}
        for number, given in enumerate(value):
            item = accept(given, good_names)
            if item is None:
                try:
                    item = self._load(given)
                except ValidationError as error:
                    errors[number] = error.messages
                    if len(errors) >= MAX_ITEM_ERRORS:
                        break
                    continue
            items.append(item)
        if errors:
            raise ValidationError(errors)
        return items


def user_ids_field(data_key: str, **kwargs: Any) -> Items[str]:
    """A field for a list of user ids, all of which must be usable."""
    user_id = Id(MAX_USER_ID_BYTES)
    return Items(
        lambda value, _: usable_user_id(value) or None,
        user_id.deserialize,
        item=user_id,
        data_key=data_key,
        metadata={"example": ["user1@example.com", "user2@example.com"]},
        **kwargs,
    )


def sent_user_ids_field(data_key: str, **kwargs: Any) -> Items[str]:
    """A field for a list of user ids, loaded as :class:`SentUserId` does."""
    return Items(
        lambda value, _: usable_user_id(value),
        usable_user_id,
        item=SentUserId(),
        data_key=data_key,
        metadata={"example": ["user1@example.com", "user2@example.com"]},
        **kwargs,
    )


class Query(Schema):
    """Base class of the schemas of query parameters. Unknown parameters are ignored."""

    class Meta:
        unknown = EXCLUDE


@cache
def limited(schema: type[Schema], max_users: int) -> Schema:
    """A schema whose lists of users hold at most ``max_users`` each, nested lists included."""
    made = schema()
    for field in _lists_of_items(made.fields.values()):
        field.max_users = max_users
    return made


def _lists_of_items(members: Iterable[fields.Field[Any]]) -> Iterator[Items[Any]]:
    for field in members:
        if isinstance(field, Items):
            yield field
        elif isinstance(field, fields.List):
            yield from _lists_of_items([field.inner])
        elif isinstance(field, fields.Nested):
            nested = list(_lists_of_items(field.schema.fields.values()))
            if nested and not isinstance(field.nested, type):
                # marshmallow shares the fields of an instance with every schema that nests it.
                raise TypeError("nest a schema with lists of users as a class, not an instance")
            yield from nested
