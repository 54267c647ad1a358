"""A Cohort Webhook's body: what is taken, and what is refused and where."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from marshmallow import ValidationError

from app.cohorts import Identify, usable_user_id
from app.web.http.body import places
from app.web.http.fields import limited
from app.web.ingest.webhook_schema import UserSchema, Webhook, WebhookSchema, accept_user

GOOD = {
    "cohort_name": "Power: users",
    "cohort_id": "abc123",
    "in_cohort": True,
    "computed_time": "1692206763",
    "message_id": "9baaa88f-9d46-4ee5-a946-be0c6aea0046::enter::0",
    "users": [{"user_id": "u1"}, {"user_id": "u2"}],
}
TRAIT = "[Amplitude] Power: users: abc123"

texts = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", "\0", "a\0b", "x" * 1024, "x" * 1025, "🎉" * 256, "🎉" * 257, "\ud800"]),
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
users = st.one_of(
    json_values,
    st.fixed_dictionaries(
        {"user_id": st.one_of(texts, st.integers(), json_values)},
        optional={"user_properties": json_values},
    ),
)


def load(**changes: Any) -> Webhook:
    return limited(WebhookSchema, 10).load({**GOOD, **changes})


def verdict(item: Any) -> str | None:
    try:
        return UserSchema().load(item)
    except ValidationError:
        return None


def test_default_body__as_documented__is_taken_whole() -> None:
    said = {TRAIT: True}
    identifies, message_id = load()
    assert list(identifies) == [
        Identify("u1", said, 1692206763000),
        Identify("u2", said, 1692206763000),
    ]
    assert message_id == GOOD["message_id"]


@given(users)
@example({"user_id": ["u"]})
@example({"user_id": {"u": 1}})
@example({"user_id": True})
@example({"user_id": 1.0})
@example({"user_id": "x" * 1024})
def test_fast_pass__whatever_it_accepts__the_item_schema_accepts_too(item: Any) -> None:
    accepted = accept_user(item, set())
    if accepted is not None:
        assert accepted == verdict(item)


@given(st.lists(users, max_size=4))
def test_users__of_any_kind__are_judged_as_the_item_schema_judges_each(items: list[Any]) -> None:
    verdicts = [verdict(item) for item in items]
    refused = {place for place, judged in enumerate(verdicts) if judged is None}
    if refused:
        with pytest.raises(ValidationError) as caught:
            load(users=items)
        assert set(caught.value.messages["users"]) == refused
    else:
        assert [call.user_id for call in load(users=items).identifies] == verdicts


@given(st.text())
def test_fast_pass__users__need_no_second_look(user_id: str) -> None:
    usable = usable_user_id(user_id)
    assert accept_user({"user_id": user_id, "user_properties": {}}, set()) == usable
    assert accept_user({"user_id": 7}, set()) == "7"
    assert accept_user({}, set()) == ""


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(GOOD, json_values))
    | st.fixed_dictionaries({name: st.just(v) | json_values for name, v in GOOD.items()})
)
@example({**GOOD, "computed_time": 10**400})
@example({**GOOD, "computed_time": float("inf")})
@example({**GOOD, "computed_time": float("nan")})
@example({**GOOD, "in_cohort": []})
def test_body__whatever_it_is__is_taken_or_refused_with_places(body: dict[str, Any]) -> None:
    refusal, identifies = None, []
    try:
        identifies = limited(WebhookSchema, 10).load(body).identifies
    except ValidationError as error:
        refusal = places(error.messages)
    assert refusal is None or all(row["place"] and row["message"] for row in refusal)
    for call in identifies:
        assert call.at_ms is None or 0 < call.at_ms < 10**14


@pytest.mark.parametrize("given_id", ["12345", 12345])
def test_ids__as_whole_numbers__are_taken_as_strings(given_id: object) -> None:
    sent = load(cohort_id=given_id, message_id=given_id, users=[{"user_id": given_id}])
    assert sent.message_id == "12345"
    (call,) = sent.identifies
    assert call == Identify("12345", {"[Amplitude] Power: users: 12345": True}, 1692206763000)


@pytest.mark.parametrize(("sent", "member"), [(True, True), ("true", True), ("false", False)])
def test_in_cohort__also_as_a_string__is_taken(sent: object, member: bool) -> None:
    assert load(in_cohort=sent).identifies[0].traits == {TRAIT: member}


@pytest.mark.parametrize(
    ("sent", "at_ms"),
    [
        ("1692206763", 1692206763000),
        (1692206763, 1692206763000),
        ("1692206763.25", 1692206763250),
        (1692206763.0004, 1692206763000),
        ("1692206763123", 1692206763123),
        (1692206763123, 1692206763123),
        (99_999_999_999, 99_999_999_999_000),
        (100_000_000_000, 100_000_000_000),
        ("0.001", 1),
        (None, None),
        ("", None),
    ],
)
def test_computed_time__in_every_form__is_understood(sent: object, at_ms: int | None) -> None:
    assert load(computed_time=sent).identifies[0].at_ms == at_ms


def test_message_id__left_out_null_or_empty__is_none() -> None:
    without = {name: value for name, value in GOOD.items() if name != "message_id"}
    assert limited(WebhookSchema, 10).load(without).message_id == ""
    assert load(message_id=None).message_id == load(message_id="").message_id == ""


def test_cohort_name__empty_or_with_colons__is_taken() -> None:
    assert list(load(cohort_name="").identifies[0].traits) == ["[Amplitude] : abc123"]
    assert list(load(cohort_name="a: b").identifies[0].traits) == ["[Amplitude] a: b: abc123"]


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"cohort_name": None}, "cohort_name"),
        ({"cohort_name": 7}, "cohort_name"),
        ({"cohort_name": "a\0"}, "cohort_name"),
        ({"cohort_name": "\ud800"}, "cohort_name"),
        ({"cohort_name": "x" * 493}, "cohort_name"),
        ({"cohort_name": "é" * 247}, "cohort_name"),
        ({"cohort_id": ""}, "cohort_id"),
        ({"cohort_id": " "}, "cohort_id"),
        ({"cohort_id": "\u3000\t"}, "cohort_id"),
        ({"cohort_id": "us:7"}, "cohort_id"),
        ({"cohort_id": "7:"}, "cohort_id"),
        ({"cohort_id": ":"}, "cohort_id"),
        ({"cohort_id": 1.0}, "cohort_id"),
        ({"cohort_id": 2.0}, "cohort_id"),
        ({"cohort_id": 2**53 + 1}, "cohort_id"),
        ({"cohort_id": True}, "cohort_id"),
        ({"cohort_id": 1.5}, "cohort_id"),
        ({"cohort_id": None}, "cohort_id"),
        ({"in_cohort": 1}, "in_cohort"),
        ({"in_cohort": "True"}, "in_cohort"),
        ({"in_cohort": None}, "in_cohort"),
        ({"computed_time": True}, "computed_time"),
        ({"computed_time": "yesterday"}, "computed_time"),
        ({"computed_time": "1,692,206,763"}, "computed_time"),
        ({"computed_time": "1e9"}, "computed_time"),
        ({"computed_time": "NaN"}, "computed_time"),
        ({"computed_time": "1e400"}, "computed_time"),
        ({"computed_time": "-1"}, "computed_time"),
        ({"computed_time": "٣"}, "computed_time"),
        ({"computed_time": 0}, "computed_time"),
        ({"computed_time": -1692206763}, "computed_time"),
        ({"computed_time": 1692206763123456}, "computed_time"),
        ({"message_id": True}, "message_id"),
        ({"message_id": 1.5}, "message_id"),
        ({"message_id": 1.0}, "message_id"),
        ({"message_id": "x" * 257}, "message_id"),
        ({"message_id": "a\0"}, "message_id"),
        ({"users": {}}, "users"),
        ({"users": None}, "users"),
        ({"users": ["u"]}, "users.0"),
    ],
)
def test_body__with_one_bad_value__is_refused_at_its_place(
    changes: dict[str, Any], place: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        load(**changes)
    assert [row["place"] for row in places(caught.value.messages)] == [place]


def test_cohort_name__up_to_the_limit_of_a_trait__is_taken() -> None:
    (trait,) = load(cohort_name="x" * 492).identifies[0].traits
    assert len(trait) == 512


def test_users__more_than_the_limit__are_refused() -> None:
    with pytest.raises(ValidationError, match="at most 10 users"):
        load(users=[{"user_id": "u"}] * 11)


@pytest.mark.parametrize("sent", ["1,692,206,763", "1.692.206.763", "1\u202f692\u202f206\u202f763"])
def test_computed_time__with_thousands_separators__is_refused_with_the_cause(sent: str) -> None:
    with pytest.raises(ValidationError, match=r"thousands separators.*[?]c"):
        load(computed_time=sent)
