"""The pass over a batch's bytes and the ordinary schema are of one mind."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from marshmallow import ValidationError

from app.cohorts import Identify
from app.errors import Problem
from app.web.http.body import decoded
from app.web.http.fields import limited
from app.web.ingest.identify_batch import accept_batch
from app.web.ingest.identify_schema import BatchSchema
from tests.unit.web.ingest.test_identify_schema import items, texts

MOST = 4

GOOD = b'{"type":"identify","userId":"u","traits":{"n: 1":true}}'
whole_items = st.fixed_dictionaries(
    {"type": st.just("identify"), "userId": texts, "traits": st.dictionaries(texts, st.booleans())},
    optional={
        "context": st.fixed_dictionaries(
            {}, optional={"integration": st.dictionaries(st.sampled_from(["name", "x"]), texts)}
        )
    },
)


def by_the_schema(raw: bytes) -> list[Identify] | None:
    """What the ordinary way makes of a body; None where it refuses it."""
    try:
        return list(limited(BatchSchema, MOST).load(decoded(raw))["batch"])
    except (ValidationError, Problem):
        return None


def check(raw: bytes) -> None:
    calls = accept_batch(raw, MOST)
    if calls is not None:
        assert [Identify(c.user_id, c.traits, c.at_ms) for c in calls] == by_the_schema(raw)


def body(batch: list[Any], **more: Any) -> bytes:
    # Not by orjson: it refuses lone surrogates.
    return json.dumps({"batch": batch, **more}, ensure_ascii=True).encode()


@given(st.lists(st.one_of(items, whole_items), max_size=MOST + 1))
def test_batch__of_any_items__is_only_accepted_as_the_schema_does(batch: list[Any]) -> None:
    check(body(batch))


@given(st.lists(whole_items, min_size=1, max_size=MOST), st.data())
def test_batch__with_a_byte_changed__is_only_accepted_as_the_schema_does(
    batch: list[Any], data: st.DataObject
) -> None:
    raw = bytearray(body(batch))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(9, len(raw) - 1))
        raw[place : place + data.draw(st.integers(0, 2))] = data.draw(
            st.one_of(st.binary(max_size=2), st.sampled_from([b"\\u0000", b"\\ud800", b",", b"{}"]))
        )
    check(bytes(raw))


def plain(text: str) -> bool:
    """Whether JSON has it without an escape, or what may be one, that is looked at again."""
    return text.isprintable() and "\\u" not in text


@given(
    st.lists(
        st.tuples(
            st.text(min_size=1, max_size=256).filter(lambda user: plain(user) and user[0] != " "),
            st.dictionaries(
                st.text(min_size=1, max_size=20).filter(plain),
                st.booleans(),
                min_size=1,
            ),
        ),
        min_size=1,
        max_size=MOST,
    )
)
@example([("é", {"Käufer: 1": True})])
def test_batch__as_amplitude_sends_it__needs_no_second_look(
    calls: list[tuple[str, dict[str, bool]]],
) -> None:
    context = {"integration": {"name": "Amplitude Cohort Sync", "version": "1.0.0"}}
    batch = [
        {"type": "identify", "userId": user, "traits": said, "context": context}
        for user, said in calls
    ]
    for raw in (body(batch), orjson.dumps({"batch": batch})):
        accepted = accept_batch(raw, MOST)
        assert accepted is not None
        assert [(call.user_id, call.traits) for call in accepted] == calls


@pytest.mark.parametrize(
    "raw",
    [
        b'{"batch":[]}',
        b'{"batch":[' + b",".join([GOOD] * (MOST + 1)) + b"]}",
        b'{"batch":[' + GOOD + b'],"x":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"batch":[' + GOOD + b'],"context":{"x":"\xff"}}',
        b'{"batch":[' + GOOD + b'],"context":{"x":"\\ud800"}}',
        b'{"batch":[' + GOOD + b'],"context":null}',
        b'{"batch":[' + GOOD.replace(b'"u"', b'"u\xff"') + b"]}",
        b'{"batch":[' + GOOD.replace(b'"u"', b'"\\u0000"') + b"]}",
        b'{"batch":[' + GOOD.replace(b"n: 1", b"n\\u0000") + b"]}",
        b'{"batch":[' + GOOD.replace(b"n: 1", b"n" * 513) + b"]}",
        b'{"batch":[' + GOOD + b"," + GOOD.replace(b"n: 1", b"n" * 513) + b"]}",
        b'{"batch":[' + GOOD.replace(b"true", b"1") + b"]}",
        b'{"batch":[' + GOOD.replace(b"true", b'"true"') + b"]}",
        b'{"batch":[' + GOOD.replace(b'{"n: 1":true}', b"{}") + b"]}",
        b'{"batch":[' + GOOD.replace(b"identify", b"track") + b"]}",
        b'{"batch":[' + GOOD.replace(b'"u"', b'"' + b"x" * 257 + b'"') + b"]}",
        b'{"batch":[' + GOOD.replace(b'"u"', b'""') + b"]}",
        b'{"batch":[' + GOOD.replace(b'"u"', b'"  "') + b"]}",
        b'{"batch":[' + GOOD.replace(b'"u"', b'"\\t"') + b"]}",
        b'{"batch":[' + GOOD.replace(b'"u"', b'"\\u00a0"') + b"]}",
        b'{"batch":[' + GOOD.replace(b'"u"', '"\u3000"'.encode()) + b"]}",
        b'{"batch":[' + GOOD + b"," + GOOD.replace(b'"u"', b"7") + b"]}",
        b'{"batch":[' + GOOD + b"]",
        b'{"batch":[' + GOOD + b"]} x",
        b'{"batch":[' + GOOD + b"," + GOOD.replace(b"true", b"null") + b"]}",
        b'{"batch":[' + GOOD + b"," + GOOD.replace(b"{", b'{"context":{"x":1},', 1) + b"]}",
        b'{"batch":[' + GOOD.replace(b"{", b'{"traits":"\xff",', 1) + b"]}",
        b'{"batch":[' + GOOD.replace(b"{", b'{"traits":"\\ud800",', 1) + b"]}",
        b'{"batch":[' + GOOD.replace(b"{", b'{"context":"\xff","context":{},', 1) + b"]}",
        GOOD,
        b"",
    ],
)
def test_batch__not_of_the_usual_form__is_left_to_the_schema(raw: bytes) -> None:
    assert accept_batch(raw, MOST) is None


def test_batch__with_keys_twice__takes_the_last_as_the_schema_does() -> None:
    twice = b'"traits":{"m":false},"userId":"a","userId":"u","traits":{"n: 1":false,"n: 1":true}'
    check(b'{"batch":[],"batch":[{"type":"identify",' + twice + b"}]}")
    assert accept_batch(b'{"batch":[],"batch":[{"type":"identify",' + twice + b"}]}", MOST)


def test_batch__that_says_this_and_that__is_taken_call_by_call() -> None:
    other = GOOD.replace(b"true", b"false").replace(b'"u"', b'"v"')
    spaced = b'{"context":{"integration":{}},' + GOOD[1:].replace(b":true", b" : true")
    check(b'{"batch":[' + b",".join((GOOD, other, spaced)) + b"]}")
    accepted = accept_batch(b'{"batch":[' + b",".join((GOOD, other, spaced)) + b"]}", MOST)
    assert accepted is not None
    assert [(call.user_id, call.traits) for call in accepted] == [
        ("u", {"n: 1": True}),
        ("v", {"n: 1": False}),
        ("u", {"n: 1": True}),
    ]
