"""The Segment protocol's bodies: the fast pass and the item schemas are of one mind."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from marshmallow import ValidationError

from app.cohorts import Cohort, Identify
from app.web.http.body import places
from app.web.http.fields import MAX_ITEM_ERRORS, limited
from app.web.ingest.segment_schema import (
    SegmentBatchSchema,
    SegmentCall,
    accept_call,
    epoch_ms,
    load_call,
    trait_name,
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
@example({**IN_CONTEXT, "context": {"traits": []}})
@example({**IN_CONTEXT, "traits": None})
@example({**GOOD, "traits": {"": True}})
@example({**GOOD, "traits": {"": 1}})
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
        calls = {n: judged for n, judged in enumerate(verdicts) if judged != "other"}
        found = {n: call.identify for n, call in calls.items() if call.identify}
        assert loaded.identifies == found
        assert loaded.without_cohorts == [n for n in calls if n not in found]
        assert loaded.others == [n for n, judged in enumerate(verdicts) if judged == "other"]
        assert loaded.ignored == sum(call.ignored for call in calls.values())


@pytest.mark.parametrize("item", [GOOD, IN_CONTEXT, {**GOOD, "anonymousId": None}])
def test_fast_pass__what_libraries_send__needs_no_second_look(item: dict[str, Any]) -> None:
    at_ms = 1692206763000 if "timestamp" in item else None
    assert accept_call(item, set()) == SegmentCall(Identify("u", SAID, at_ms), 0)


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
        ({**GOOD, "traits": {"n" * 513: True}}, f"batch.1.traits.{'n' * 513}"),
        ({**GOOD, "traits": {"": True, "email": "a@b.c"}}, "batch.1.traits."),
        ({**GOOD, "traits": []}, "batch.1.traits"),
        ({**GOOD, "traits": "abc"}, "batch.1.traits"),
        ({**GOOD, "context": "c"}, "batch.1.context"),
        ({**IN_CONTEXT, "context": {"traits": {"\0": True}}}, "batch.1.context.traits.\0"),
        ({**IN_CONTEXT, "context": {"traits": []}}, "batch.1.context.traits"),
    ],
)
def test_batch__one_bad_item__is_named_by_its_place(item: Any, place: str) -> None:
    with pytest.raises(ValidationError) as caught:
        limited(SegmentBatchSchema, 10).load({"batch": [GOOD, item, GOOD]})
    assert [row["place"] for row in places(caught.value.messages)] == [place]


def test_batch__with_very_many_bad_trait_names__names_some() -> None:
    traits = {f"{number}{'n' * 513}": True for number in range(2 * MAX_ITEM_ERRORS)}
    with pytest.raises(ValidationError) as caught:
        load_call({**GOOD, "traits": traits})
    assert len(list(places(caught.value.messages))) == MAX_ITEM_ERRORS


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("[Amplitude] Trial (abc123)", "[Amplitude] Trial: abc123"),
        ("[Amplitude] Trial: day 3 (abc123)", "[Amplitude] Trial: day 3: abc123"),
        ("[Amplitude] a (b) [c] (abc123)", "[Amplitude] a (b) [c]: abc123"),
        ("[Amplitude] a ( (abc123)", "[Amplitude] a (: abc123"),
        ("[Amplitude]  (abc123)", "[Amplitude] : abc123"),
        ("[Amplitude] two\nlines (abc123)", "[Amplitude] two\nlines: abc123"),
        ("[Amplitude] Trial (beta): abc123", None),
        ("[Amplitude] Trial (abc123) ", None),
        ("[Amplitude] Trial(abc123)", None),
        ("[Amplitude] Trial ()", None),
        ("[Amplitude] Trial ( )", None),
        ("[Amplitude] Trial (a:b)", None),
        ("[Amplitude] (abc123)", None),
        ("Trial (abc123)", None),
        ("[amplitude] Trial (abc123)", None),
    ],
)
def test_trait_name__with_the_id_in_brackets__is_stored_as_other_sources_send_it(
    sent: str, stored: str | None
) -> None:
    assert trait_name(sent) == (stored or sent)
    if stored:
        assert Cohort.from_trait(stored).id == "abc123"


def test_trait_name__of_the_greatest_length__takes_no_time() -> None:
    names = [f"[Amplitude] {piece * 250}"[:512] for piece in (" (", "(", ") (", "a (b", " (a)")]
    started = time.process_time()
    for name in names:
        trait_name(name)
    assert time.process_time() - started < 0.1
