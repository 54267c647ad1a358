"""Messages decoded without what nobody reads are what the ordinary decoder makes of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.errors import InvalidJson, InvalidPayload, Problem
from app.web.http.body import decoded, load
from app.web.http.fields import limited
from app.web.ingest.webhook_body import decode_message
from app.web.ingest.webhook_schema import WebhookSchema
from tests.unit.web.ingest.test_webhook_schema import GOOD, json_values, users

MOST = 4
SCHEMA = limited(WebhookSchema, MOST)
bodies = st.fixed_dictionaries(
    {name: st.just(value) | json_values for name, value in GOOD.items()},
    optional={"extra": json_values},
) | st.fixed_dictionaries({**{n: st.just(v) for n, v in GOOD.items()}, "users": st.lists(users)})


REFUSED = (InvalidJson, InvalidPayload)


def outcome(raw: bytes, *, lean: bool) -> Any:
    """The calls and the message id, or the class and the places of the error."""
    try:
        body = decode_message(raw, MOST) if lean else decoded(raw)
        message = load(SCHEMA, body)
    except Problem as problem:
        return type(problem), {error["place"] for error in problem.errors or ()}
    return list(message.identifies), message.message_id


def check(raw: bytes) -> None:
    lean, ordinary = outcome(raw, lean=True), outcome(raw, lean=False)
    if ordinary[0] in REFUSED:
        # Lean decoding stops at the first thing of another type; it may be no JSON after that.
        assert lean[0] in REFUSED
    else:
        assert lean == ordinary


@given(bodies)
@example({**GOOD, "users": [{}, {"user_id": 7}, {"user_id": []}, {"user_id": {"a": 1}}]})
@example({**GOOD, "users": [{"user_id": "x" * 1024}, {"user_id": "\u00e9" * 1024}]})
@example({**GOOD, "users": [{"user_id": "u"}, "u", 7]})
@example({**GOOD, "users": [{"user_id": "u"}] * (MOST + 1)})
@example({**GOOD, "cohort_name": ["n"], "cohort_id": {}})
@example({})
def test_message__of_any_kind__is_taken_or_refused_alike(body: dict[str, Any]) -> None:
    check(json.dumps(body).encode())


@given(bodies, st.data())
def test_message__with_a_byte_changed__is_taken_or_refused_alike(
    body: dict[str, Any], data: st.DataObject
) -> None:
    raw = bytearray(json.dumps(body).encode())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place : place + 1] = data.draw(
        st.sampled_from([b"", b"\xff", b'"', b"\\", b"{", b",", b"7"])
    )
    check(bytes(raw))


@pytest.mark.parametrize(
    "unread",
    [
        *(b"\xff", rb"\ud800", rb"\ude00\ud83d", b"\n", rb"\q", rb"\u12", b"\xed\xa0\x80"),
    ],
)
def test_unread_text__that_is_no_unicode__is_refused(unread: bytes) -> None:
    raw = json.dumps({**GOOD, "users": [{"user_id": "u", "x": "?"}]}).encode()
    assert outcome(raw, lean=True)[1] == GOOD["message_id"]
    assert outcome(raw.replace(b"?", unread), lean=True) == (InvalidJson, set())


@pytest.mark.parametrize(
    "unread", ["NaN", "Infinity", "01", "1.", "+1", "tru", "[1 2]", "{1: 2}", "'x'"]
)
def test_unread_value__that_is_no_json__is_refused(unread: str) -> None:
    raw = json.dumps({**GOOD, "extra": "?"}).replace('"?"', unread)
    assert outcome(raw.encode(), lean=True) == (InvalidJson, set())


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"1", b"null", b'"x"', b"{", b"[" * 20_000, b"\xef\xbb\xbf{}"]
)
def test_body__that_is_no_message__is_refused_alike(raw: bytes) -> None:
    check(raw)


def test_nesting__however_deep_and_unread__is_refused() -> None:
    for opened, closed in ((b"[", b"]"), (b'{"a":', b"}")):
        deep = opened * 100_000 + b"1" + closed * 100_000
        raw = json.dumps({**GOOD, "extra": "?"}).encode().replace(b'"?"', deep)
        assert outcome(raw, lean=True) == (InvalidJson, set())


def test_number__with_thousands_separators__is_named_as_the_cause() -> None:
    raw = json.dumps(GOOD).replace('"1692206763"', "1,692,206,763").encode()
    with pytest.raises(InvalidJson, match="thousands separators"):
        decode_message(raw, MOST)


def test_users__more_than_the_limit__are_refused_before_they_are_made() -> None:
    """The rest is not even read: it is no JSON."""
    with pytest.raises(InvalidPayload) as caught:
        decode_message(b'{"users": [' + b"{}," * (MOST + 1) + b"oops", MOST)
    assert caught.value.errors == [
        {"place": "users", "message": f"Must hold at most {MOST} users."}
    ]
