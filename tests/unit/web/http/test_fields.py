"""Fields of bodies: limits on users hold at any depth."""

from __future__ import annotations

from typing import Any

import pytest
from marshmallow import Schema, ValidationError, fields

from app.web.http.body import places
from app.web.http.fields import Base, limited, user_ids_field


class Group(Base):
    user_ids = user_ids_field("userIds", required=True)


class Nested(Base):
    group = fields.Nested(Group)
    groups = fields.Nested(Group, many=True)
    listed = fields.List(fields.Nested(Group))
    lists = fields.List(user_ids_field("userIds"))


FOUR, THREE = ["a", "b", "c", "d"], ["a", "b", "c"]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"group": {"userIds": FOUR}}, "group.userIds"),
        ({"groups": [{"userIds": THREE}, {"userIds": FOUR}]}, "groups.1.userIds"),
        ({"listed": [{"userIds": THREE}, {"userIds": FOUR}]}, "listed.1.userIds"),
        ({"lists": [THREE, FOUR]}, "lists.1"),
    ],
)
def test_limit__of_a_nested_list__is_that_of_the_body(body: dict[str, Any], place: str) -> None:
    assert limited(Nested, 4).load(body)
    assert Nested().load(body)
    with pytest.raises(ValidationError, match="at most 3 users") as caught:
        limited(Nested, 3).load(body)
    assert [row["place"] for row in places(caught.value.messages)] == [place]


def test_limit__of_a_schema_nested_as_an_instance__is_refused() -> None:
    """Its fields would be shared with every schema that nests it."""

    class Shared(Schema):
        group = fields.Nested(Group())

    with pytest.raises(TypeError, match="as a class"):
        limited(Shared, 3)
