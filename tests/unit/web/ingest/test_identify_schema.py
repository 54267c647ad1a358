"""The fast pass over a batch and the ordinary item schema are of one mind."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from marshmallow import ValidationError

from app.cohorts import Identify
from app.web.http.body import places
from app.web.http.fields import limited
from app.web.ingest.identify_schema import BatchSchema, IdentifySchema, accept

SCHEMA = IdentifySchema()

texts = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", "\0", "a\0b", "x" * 512, "x" * 513, "é" * 256, "é" * 257, "🎉" * 256]),
    st.sampled_from(["x" * 1024, "x" * 1025, "🎉" * 257, "\ud800", "identify", "n: 1"]),
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
traits = st.one_of(
    st.dictionaries(texts, st.booleans(), max_size=3),
    st.dictionaries(
        texts, st.one_of(st.booleans(), st.sampled_from([0, 1, "true", None])), max_size=3
    ),
    json_values,
)
items = st.one_of(
    json_values,
    st.fixed_dictionaries(
        {"type": st.one_of(st.just("identify"), json_values), "userId": texts, "traits": traits},
        optional={"context": json_values, "extra": json_values, "userid": texts},
    ),
    st.fixed_dictionaries(
        {}, optional={"type": json_values, "userId": json_values, "traits": json_values}
    ),
)

GOOD = {"type": "identify", "userId": "u", "traits": {"n: 1": True}}


def verdict(item: Any) -> Any:
    try:
        return SCHEMA.load(item)
    except ValidationError:
        return None


@given(items)
@example({**GOOD, "userId": "\ud800"})
@example({**GOOD, "userId": ["u"]})
@example({**GOOD, "userId": {"u": 1}})
@example({**GOOD, "traits": {"n": 1}})
@example({**GOOD, "traits": []})
@example({**GOOD, "traits": "abc"})
@example({**GOOD, "type": True})
@example({**GOOD, "context": None})
@example({**GOOD, "userId": "x" * 1024})
def test_fast_pass__whatever_it_accepts__the_item_schema_accepts_too(item: Any) -> None:
    accepted = accept(item, set())
    if accepted is not None:
        assert accepted == verdict(item)


@given(st.lists(items, max_size=4))
def test_batch__of_any_items__is_judged_as_the_item_schema_judges_each(batch: list[Any]) -> None:
    verdicts = [verdict(item) for item in batch]
    refused = {place for place, judged in enumerate(verdicts) if judged is None}
    if refused:
        with pytest.raises(ValidationError) as caught:
            limited(BatchSchema, 10).load({"batch": batch})
        assert set(caught.value.messages["batch"]) == refused
    else:
        assert limited(BatchSchema, 10).load({"batch": batch})["batch"] == verdicts


@given(
    st.text(min_size=1, max_size=256).filter(lambda t: "\0" not in t and t.isprintable()),
    st.dictionaries(
        st.text(min_size=1, max_size=20).filter(str.isprintable), st.booleans(), min_size=1
    ),
)
def test_fast_pass__ordinary_items__need_no_second_look(user: str, said: dict[str, bool]) -> None:
    assert accept({"type": "identify", "userId": user, "traits": said}, set()) == Identify(
        "" if user.isspace() else user, said
    )


@pytest.mark.parametrize("bad", [None, "", " ", "x" * 1025, 1.0, True, [], {}])
def test_fast_pass__bad_user_ids__need_no_second_look(bad: object) -> None:
    """Thousands of them in one body would otherwise hold up the worker."""
    assert accept({**GOOD, "userId": bad}, set()) == Identify("", GOOD["traits"])
    without = {name: value for name, value in GOOD.items() if name != "userId"}
    assert accept(without, set()) == SCHEMA.load(without) == Identify("", GOOD["traits"])


@pytest.mark.parametrize(
    ("item", "place"),
    [
        ({**GOOD, "traits": {"n: 1": "true"}}, "batch.2.traits.n: 1"),
        ({**GOOD, "traits": {"n: 1": 1}}, "batch.2.traits.n: 1"),
        ({**GOOD, "traits": {"n: 1": None}}, "batch.2.traits.n: 1"),
        ({**GOOD, "traits": {"_schema": 1}}, "batch.2.traits._schema"),
        ({**GOOD, "traits": {}}, "batch.2.traits"),
        ({**GOOD, "context": "c"}, "batch.2.context"),
        ({**GOOD, "type": "track"}, "batch.2.type"),
        ([], "batch.2"),
    ],
)
def test_batch__one_bad_item__is_named_by_its_place(item: Any, place: str) -> None:
    with pytest.raises(ValidationError) as caught:
        limited(BatchSchema, 10).load({"batch": [GOOD, GOOD, item, GOOD]})
    assert [row["place"] for row in places(caught.value.messages)] == [place]


def test_batch__every_item_bad__stops_looking_at_fifty() -> None:
    with pytest.raises(ValidationError) as caught:
        limited(BatchSchema, 1000).load({"batch": [{**GOOD, "type": ""}] * 1000})
    assert len(places(caught.value.messages)) == 50


def test_batch__more_users_than_the_limit__is_refused() -> None:
    assert len(limited(BatchSchema, 3).load({"batch": [GOOD] * 3})["batch"]) == 3
    with pytest.raises(ValidationError, match="at most 3 users"):
        limited(BatchSchema, 3).load({"batch": [GOOD] * 4})
