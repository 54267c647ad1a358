"""The Segment protocol's bodies: the fast pass and the item schemas are of one mind."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from marshmallow import ValidationError

from app.cohorts import Identify
from app.web.http.body import places
from app.web.http.fields import limited
from app.web.ingest.segment_schema import (
    SegmentBatchSchema,
    accept_call,
    epoch_ms,
    load_call,
)
from tests.unit.web.ingest.test_identify_schema import json_values, texts, traits

times = st.one_of(
    st.datetimes().map(lambda time: time.isoformat()),
    st.datetimes(timezones=st.timezones()).map(lambda time: time.isoformat()),
    json_values,
)
items = st.one_of(
    json_values,
    st.fixed_dictionaries(
        {
            "type": st.one_of(st.sampled_from(["identify", "track", "delete"]), texts),
            "userId": texts,
        },
        optional={
            "traits": traits,
            "timestamp": times,
            "messageId": json_values,
            "context": st.one_of(json_values, st.fixed_dictionaries({"traits": traits})),
        },
    ),
)

SAID = {"n: 1": True}
GOOD = {"type": "identify", "userId": "u", "traits": SAID, "timestamp": "2023-08-16T17:26:03Z"}
IN_CONTEXT = {"type": "identify", "userId": "u", "context": {"traits": SAID}}


def verdict(item: Any) -> Any:
    try:
        return load_call(item)
    except ValidationError:
        return None


@given(items)
@example(GOOD)
@example(IN_CONTEXT)
@example({**GOOD, "timestamp": None})
@example({**GOOD, "timestamp": ""})
@example({**GOOD, "timestamp": "0001-01-01T00:00:00+23:59"})
@example({**GOOD, "timestamp": "9999-12-31T23:59:59-23:59"})
@example({**GOOD, "timestamp": 1692206763})
@example({**IN_CONTEXT, "traits": {}})
@example({**IN_CONTEXT, "context": {"traits": {"n: 1": 1}}})
@example({**GOOD, "type": ["track"]})
def test_fast_pass__whatever_it_accepts__the_item_schema_accepts_too(item: Any) -> None:
    accepted = accept_call(item, set())
    if accepted is not None:
        assert accepted == verdict(item)


@given(st.lists(items, max_size=4))
def test_batch__of_any_items__is_judged_as_the_item_schema_judges_each(batch: list[Any]) -> None:
    verdicts = [verdict(item) for item in batch]
    refused = {place for place, judged in enumerate(verdicts) if judged is None}
    if refused:
        with pytest.raises(ValidationError) as caught:
            limited(SegmentBatchSchema, 10).load({"batch": batch})
        assert set(caught.value.messages["batch"]) == refused
    else:
        loaded = limited(SegmentBatchSchema, 10).load({"batch": batch})
        assert loaded.identifies == {
            n: judged for n, judged in enumerate(verdicts) if judged != "other"
        }
        assert loaded.others == [n for n, judged in enumerate(verdicts) if judged == "other"]


@pytest.mark.parametrize("item", [GOOD, IN_CONTEXT, {**GOOD, "anonymousId": None}])
def test_fast_pass__what_libraries_send__needs_no_second_look(item: dict[str, Any]) -> None:
    at_ms = 1692206763000 if "timestamp" in item else None
    assert accept_call(item, set()) == Identify("u", SAID, at_ms)


@pytest.mark.parametrize(
    ("text", "at_ms"),
    [
        ("2023-08-16T17:26:03Z", 1692206763000),
        ("2023-08-16T17:26:03.123Z", 1692206763123),
        ("2023-08-16T17:26:03.123999+00:00", 1692206763123),
        ("2023-08-16T17:26:03.123456789Z", 1692206763123),
        ("2023-08-16T19:26:03+02:00", 1692206763000),
        ("2023-08-16T17:26:03", 1692206763000),
        ("2023-08-16 17:26:03", 1692206763000),
        ("2023-08-16", 1692144000000),
        ("1970-01-01T00:00:00Z", 0),
        ("1969-12-31T23:59:59.9Z", -100),
    ],
)
def test_timestamp__in_iso_8601__is_ms_since_the_epoch(text: str, at_ms: int) -> None:
    assert epoch_ms(text) == at_ms


@pytest.mark.parametrize(
    ("item", "place"),
    [
        ({**GOOD, "timestamp": "yesterday"}, "batch.1.timestamp"),
        ({**GOOD, "timestamp": 1692206763}, "batch.1.timestamp"),
        ({**GOOD, "timestamp": ""}, "batch.1.timestamp"),
        ({**GOOD, "type": ""}, "batch.1.type"),
        ({**GOOD, "type": None}, "batch.1.type"),
        ({**GOOD, "traits": {"email": "a@b.c"}}, "batch.1.traits.email"),
        ({**GOOD, "context": "c"}, "batch.1.context"),
        ({**IN_CONTEXT, "context": {"traits": {"n: 1": 1}}}, "batch.1.context.traits.n: 1"),
        ({**IN_CONTEXT, "context": {"traits": {}}}, "batch.1.context.traits"),
        ({**IN_CONTEXT, "context": {}}, "batch.1.traits"),
    ],
)
def test_batch__one_bad_item__is_named_by_its_place(item: Any, place: str) -> None:
    with pytest.raises(ValidationError) as caught:
        limited(SegmentBatchSchema, 10).load({"batch": [GOOD, item, GOOD]})
    assert [row["place"] for row in places(caught.value.messages)] == [place]
