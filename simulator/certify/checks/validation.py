"""Invalid requests: refused with a 400, never half applied, never a 5xx."""

from __future__ import annotations

from typing import Any

from ... import payloads
from ...replies import excerpt
from ..context import Context, Failed, Skipped, expect
from .group import CheckGroup

group = CheckGroup()


@group.check("invalid.json", "property", "“400: Invalid request”: a body that is not valid JSON.")
def invalid_json(c: Context) -> None:
    for body in (b"", b"{", b"not json", b'{"type": "identify", }', b"{'single': 'quotes'}"):
        expect(c.identify(body), 400, label=repr(body))


@group.check(
    "invalid.shape",
    "property",
    "“400: Invalid request”: JSON that is neither an identify nor a batch.",
)
def invalid_shape(c: Context) -> None:
    trait, [user] = c.trait(), c.users(1)
    good = payloads.identify(user, trait, True)
    bodies: dict[str, Any] = {
        "a string": "identify",
        "null": None,
        "an empty object": {},
        "no traits": {name: value for name, value in good.items() if name != "traits"},
        "a list as traits": good | {"traits": [trait]},
        "a batch that is not a list": {"batch": good},
        "a batch of strings": {"batch": [user]},
    }
    for label, body in bodies.items():
        expect(c.identify(body), 400, label=label)
    without_id: dict[str, Any] = {
        "no userId": {name: value for name, value in good.items() if name != "userId"},
        "an empty userId": good | {"userId": ""},
        "a list as userId": good | {"userId": ["x"]},
    }
    for label, body in without_id.items():
        expect(c.identify(body), 400, 404, label=label)
    c.expect_trait(trait, {user: None})


@group.check(
    "invalid.values",
    "property",
    "A trait's value is “True / False”: anything else returns 400.",
)
def invalid_values(c: Context) -> None:
    trait, [user] = c.trait(), c.users(1)
    values: tuple[Any, ...] = ("true", 1, 0, None, [], {})
    for value in values:
        body = payloads.identify(user, trait, True) | {"traits": {trait: value}}
        expect(c.identify(body), 400, label=f"value {value!r}")
        expect(c.identify({"batch": [body]}), 400, label=f"value {value!r} in a batch")
    c.expect_trait(trait, {user: None})


@group.check(
    "invalid.no-silent-drop",
    "property",
    "“Some destinations return 2xx and silently drop users” is the most frequent complaint: a "
    "batch with an invalid item is refused, or the reply reports the item.",
    origin="known",
)
def invalid_no_silent_drop(c: Context) -> str:
    trait, users = c.trait(), c.users(3)
    body = payloads.batch(users, trait, True)
    del body["batch"][1]["userId"]
    reply = c.identify(body)
    if reply.ok:
        found = reply.json()
        reported = isinstance(found, dict) and any(
            found.get(name) for name in ("rejected", "errors", "failed", "invalid", "error")
        )
        if not reported:
            raise Failed(f"got {reply.status} {excerpt(reply.body)}, which reports nothing")
        return "accepted; the reply reports the item"
    expect(reply, 400)
    return "refused with 400"


@group.check(
    "invalid.writes-nothing",
    "property",
    "A batch refused as invalid has no effect: Amplitude doesn't retry it.",
    level="should",
    origin="known",
)
def invalid_writes_nothing(c: Context) -> str | None:
    if c.reader is None:
        raise Skipped("needs --reader")
    trait, users = c.trait(), c.users(3)
    body = payloads.batch(users, trait, True)
    body["batch"][2]["traits"] = {trait: "true"}
    if c.identify(body).ok:
        return "not refused"
    c.expect_trait(trait, dict.fromkeys(users))
    return None


@group.check(
    "invalid.never-500",
    "property",
    "Only 200, 400, 401, 404 and 429 are documented: no request returns a 5xx, which "
    "Amplitude would retry.",
)
def invalid_never_500(c: Context) -> None:
    user = c.users(1)[0]
    trait = c.trait()
    identify = b'{"type":"identify","userId":"%b","traits":{"x:1":%b}}'
    bodies: dict[str, bytes] = {
        "invalid UTF-8": b'{"type":"identify","userId":"\xff\xfe","traits":{"x:1":true}}',
        "a lone surrogate": identify % (rb"\ud800", b"true"),
        "NUL in the user id": identify % (rb"a\u0000b", b"true"),
        "NaN": identify % (user.encode(), b"NaN"),
        "a huge number": identify % (user.encode(), b"1" * 5_000),
        "deep nesting": b'{"batch":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "deep objects": b'{"traits":' * 50_000 + b"1" + b"}" * 50_000,
        "an array": b"[]",
        "a number": b"1",
        "a duplicate key": b'{"type":"identify","type":1,"userId":"a","userId":2,"traits":{}}',
        "no body": b"",
        "binary": bytes(range(256)),
    }
    for label, body in bodies.items():
        reply = c.identify(body)
        if reply.status is None or reply.status >= 500:
            raise Failed(f"{label}: got {reply}")
    expect(c.identify(payloads.identify(user, trait, True)), 200, label="a later request")
