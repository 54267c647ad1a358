"""The checks. Each says what the document has about it, or what is known of Amplitude from
elsewhere.

`must`: a receiver that doesn't do it is wrong by the document or loses users. `should`: known from
practice, or a courtesy to the sender; it doesn't decide the verdict. `source` is `document` for
"Receiving Behavioral Cohorts" and `known` for Amplitude's other pages and for receivers in
production.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from .. import payloads
from ..cohort import Cohort
from ..encode import to_json
from ..engine import CohortSync, list_id
from ..engine import Mode as SyncMode
from ..faults import Misbehaviour
from ..stats import short
from ..truth import compare
from ..wire import Reply
from .runner import Check, Context, Failed, Level, Skipped, Source, Way, need

CHECKS: list[Check] = []

Run = Callable[[Context], str | None]


def check(
    name: str, way: Way | None, says: str, level: Level = "must", source: Source = "document"
) -> Callable[[Run], Run]:
    """Add a function to `CHECKS`; it fails by raising `Failed`, and may return a detail to show."""

    def add(run: Run) -> Run:
        CHECKS.append(Check(name, way, level, source, says, run))
        return run

    return add


# Who may call


@check(
    "credentials.basic",
    "property",
    "“The partner must send the api_key as the username and an empty password.”",
)
def credentials_basic(c: Context) -> None:
    trait, [user] = c.trait(), c.users(1)
    need(c.identify(payloads.identify(user, trait, True), target=c.target("basic")), 200)
    c.holds(trait, {user: True})


@check(
    "credentials.headers",
    "property",
    "The document's own test request: --header 'api_key: …' --header 'app_id: …', the trait "
    "“cohort name:123”, no context.",
)
def credentials_headers(c: Context) -> None:
    _, cohort_id = c.cohort()
    trait, [user] = f"cohort name:{cohort_id}", c.users(1)
    body = {"traits": {trait: True}, "type": "identify", "userId": user}
    need(c.identify(body, target=c.target("headers")), 200)
    c.holds(trait, {user: True})


@check(
    "credentials.bearer",
    "property",
    "An integration may be set up with a Bearer token.",
    level="should",
    source="known",
)
def credentials_bearer(c: Context) -> None:
    trait, [user] = c.trait(), c.users(1)
    need(c.identify(payloads.identify(user, trait, True), target=c.target("bearer")), 200)
    c.holds(trait, {user: True})


@check("credentials.missing", "property", "“401: Unauthorized (bad api_key)”: no key at all.")
def credentials_missing(c: Context) -> None:
    trait, [user] = c.trait(), c.users(1)
    need(c.identify(payloads.identify(user, trait, True), target=c.target("none")), 401)
    c.holds(trait, {user: None})


@check(
    "credentials.wrong",
    "property",
    "“401: Unauthorized (bad api_key)”: a wrong key, as Basic, as header, as Bearer.",
)
def credentials_wrong(c: Context) -> None:
    trait, [user] = c.trait(), c.users(1)
    wrong = f"not-{c.message_id()}"
    for auth in ("basic", "headers", "bearer"):
        body = payloads.identify(user, trait, True)
        need(c.identify(body, target=c.target(auth, wrong)), 401, what=auth)
    c.holds(trait, {user: None})


@check("credentials.lists", "list", "“401: Unauthorized (bad api_key)”, at the list URLs too.")
def credentials_lists(c: Context) -> None:
    refused, trait, users = c.target("none"), c.trait(), c.users(2)
    body = payloads.list_create(trait)
    need(c.post(c.options.lists_path, body, target=refused), 401, what="create")
    found = create(c, trait)
    for call in ("add", "remove"):
        path = list_path(c, found, call)
        need(c.post(path, payloads.list_users(users), target=refused), 401, what=call)
    c.holds(trait, dict.fromkeys(users))


@check("credentials.webhook", "webhook", "“401: Unauthorized (bad api_key)”, at the webhook too.")
def credentials_webhook(c: Context) -> None:
    cohort, users = c.cohort(), c.users(2)
    body = hook(c, cohort, users, True)
    need(c.webhook(body, target=c.target("none")), 401)
    c.holds(payloads.trait_name(*cohort), dict.fromkeys(users))


# Property-based: identify and batch


@check(
    "property.single",
    "property",
    "“Amplitude sets the property for cohort members to true when a user becomes part of "
    "the cohort … "
    "to false when a user leaves the cohort.” “200: Success”.",
)
def property_single(c: Context) -> None:
    trait, [user] = c.trait(), c.users(1)
    for member in (True, False, True):
        need(c.identify(payloads.identify(user, trait, member)), 200)
        c.holds(trait, {user: member})
    c.has_exactly(user, {trait: True})


@check(
    "property.batch",
    "property",
    "“Amplitude uses a bulk API and batches multiple users in a single request.”",
)
def property_batch(c: Context) -> None:
    trait, users = c.trait(), c.users(50)
    need(c.identify(payloads.batch(users, trait, True)), 200)
    c.holds(trait, dict.fromkeys(users, True))
    need(c.identify(payloads.batch(users[:20], trait, False)), 200)
    c.holds(trait, dict.fromkeys(users[:20], False) | dict.fromkeys(users[20:], True))


@check(
    "property.spellings",
    "property",
    "The trait is “[Amplitude] {$cohort_name}: {$cohort_id}” in the payloads and “cohort "
    "name:123” in the "
    "test request.",
)
def property_spellings(c: Context) -> None:
    _, cohort_id = c.cohort()
    users = c.users(2)
    for user, trait in zip(
        users, (f"[Amplitude] cohort name: {cohort_id}", f"cohort name:{cohort_id}1"), strict=True
    ):
        need(c.identify(payloads.identify(user, trait, True)), 200, what=trait)
        c.has_exactly(user, {trait: True})


@check(
    "property.names",
    "property",
    "Cohort names may hold colons, quotes, backslashes, “<”, emoji.",
    source="known",
)
def property_names(c: Context) -> None:
    names = ("a: b: c", 'say "hi"', "back\\slash", "<b>&amp;", "Ünïcode 日本語 🎉", "{x}", "it's")
    for name, user in zip(names, c.users(len(names)), strict=True):
        trait = c.trait(name)
        need(c.identify(payloads.identify(user, trait, True)), 200, what=name)
        c.has_exactly(user, {trait: True})


@check(
    "property.user-ids",
    "property",
    "Any user id that the customer has given Amplitude: e-mail addresses, numbers, any script.",
)
def property_user_ids(c: Context) -> None:
    tail, trait = c.users(1)[0], c.trait()
    users = [
        f"Test.User+{tail}@Email.com",
        f"{int(tail, 16)}",
        f"a:b/c?d=e&f {{{tail}}}",
        f"Ünïcode-日本語-🎉-{tail}",
        f"{'x' * 230}-{tail}",
    ]
    need(c.identify(payloads.batch(users, trait, True)), 200)
    c.holds(trait, dict.fromkeys(users, True))
    lower = users[0].lower()
    c.holds(trait, {lower: None})


@check(
    "property.two-cohorts",
    "property",
    "“Amplitude sends a separate request for each cohort a user belongs to.”",
)
def property_two_cohorts(c: Context) -> None:
    first, second, [user] = c.trait("First"), c.trait("Second"), c.users(1)
    need(c.identify(payloads.identify(user, first, True)), 200)
    need(c.identify(payloads.identify(user, second, True)), 200)
    need(c.identify(payloads.identify(user, first, False)), 200)
    c.has_exactly(user, {first: False, second: True})


@check(
    "property.repeat",
    "property",
    "“If a request fails, Amplitude retries”: a repeated request is answered 200 and "
    "changes nothing.",
)
def property_repeat(c: Context) -> None:
    trait, users = c.trait(), c.users(10)
    for _ in range(3):
        need(c.identify(payloads.batch(users, trait, True)), 200)
    c.holds(trait, dict.fromkeys(users, True))
    need(c.identify(payloads.batch(users, trait, False)), 200)
    need(c.identify(payloads.batch(users, trait, False)), 200)
    c.holds(trait, dict.fromkeys(users, False))


@check(
    "property.leave-first",
    "property",
    "A user may be set to false who never was true: a retry of an earlier sync can be lost.",
)
def property_leave_first(c: Context) -> None:
    trait, [user] = c.trait(), c.users(1)
    need(c.identify(payloads.identify(user, trait, False)), 200)
    c.holds(trait, {user: False})


@check(
    "property.unknown-fields",
    "property",
    "Senders add fields: unknown ones are ignored, not refused.",
    source="known",
)
def property_unknown_fields(c: Context) -> None:
    trait, users = c.trait(), c.users(2)
    extra: dict[str, Any] = {"messageId": "m", "sentAt": "2024-01-01T00:00:00Z", "x": {"y": [1]}}
    need(c.identify(payloads.identify(users[0], trait, True, **extra)), 200, what="single")
    body = payloads.batch(users[1:], trait, True) | extra
    body["batch"][0] |= extra
    body["batch"][0]["context"]["library"] = {"name": "x"}
    need(c.identify(body), 200, what="batch")
    c.holds(trait, dict.fromkeys(users, True))


@check("property.no-context", "property", "The document's test request has no context.")
def property_no_context(c: Context) -> None:
    trait, users = c.trait(), c.users(2)
    single = payloads.identify(users[0], trait, True)
    del single["context"]
    need(c.identify(single), 200, what="single")
    body = payloads.batch(users[1:], trait, True)
    del body["batch"][0]["context"]
    need(c.identify(body), 200, what="batch")
    c.holds(trait, dict.fromkeys(users, True))


@check(
    "property.charset",
    "property",
    "Content-Type may name its charset.",
    level="should",
    source="known",
)
def property_charset(c: Context) -> None:
    trait, [user] = c.trait("Ünï"), c.users(1)
    headers = {"Content-Type": "application/json; charset=utf-8"}
    need(c.identify(payloads.identify(user, trait, True), headers=headers), 200)
    c.holds(trait, {user: True})


@check("property.1000-users", "property", "“By default, batches have 1000 users.”")
def property_1000(c: Context) -> str:
    return sized(c, 1_000)


@check(
    "property.10000-users",
    "property",
    "“… but the batch size is configurable”; another page of Amplitude's has 10,000.",
    level="should",
    source="known",
)
def property_10000(c: Context) -> str:
    return sized(c, 10_000)


def sized(c: Context, count: int) -> str:
    trait, users = c.trait(), c.users(count)
    reply = need(c.identify(payloads.batch(users, trait, True)), 200)
    c.holds(trait, dict.fromkeys(users, True))
    return f"answered in {reply.seconds:.3f} s"


@check(
    "property.within-2s",
    "property",
    "Amplitude waits 1 to 2 seconds for the answer to a batch (published for webhooks), "
    "and then sends it again.",
    level="should",
    source="known",
)
def property_deadline(c: Context) -> str:
    trait = c.trait()

    def one(users: Sequence[str]) -> Reply:
        return c.identify(payloads.batch(users, trait, True))

    return deadline(c, one, 2.0)


def deadline(c: Context, call: Callable[[Sequence[str]], Reply], seconds: float) -> str:
    slowest = 0.0
    for _ in range(5):
        slowest = max(slowest, need(call(c.users(1_000)), 200).seconds)
        if slowest > seconds:
            raise Failed(f"a batch of 1,000 users took {slowest:.2f} s")
    return f"slowest of 5 batches of 1,000 users: {slowest:.3f} s"


@check(
    "property.four-at-once",
    "property",
    "“By default, Amplitude uses 4 threads to make requests to the downstream platform.”",
)
def property_four(c: Context) -> str:
    trait, users = c.trait(), c.users(4_000)
    parts = [users[start : start + 1_000] for start in range(0, 4_000, 1_000)]
    calls = [(c.options.path, payloads.batch(part, trait, True)) for part in parts]
    replies = [need(reply, 200) for reply in c.at_once(calls)]
    c.holds(trait, dict.fromkeys(users, True))
    return f"slowest: {max(reply.seconds for reply in replies):.3f} s"


@check(
    "property.same-at-once",
    "property",
    "A retry can overlap with the request that it repeats: both are answered 200.",
)
def property_same(c: Context) -> None:
    trait, users = c.trait(), c.users(500)
    body = payloads.batch(users, trait, True)
    for reply in c.at_once([(c.options.path, body)] * 4):
        need(reply, 200)
    c.holds(trait, dict.fromkeys(users, True))


@check(
    "property.cohorts-at-once",
    "property",
    "“Amplitude sends a separate request for each cohort a user belongs to”: of four at the same "
    "time none undoes what another has set.",
)
def property_cohorts_at_once(c: Context) -> None:
    if c.reader is None:
        raise Skipped("needs --reader")
    users = c.users(100)
    for _ in range(5):
        traits = [c.trait() for _ in range(4)]
        calls = [(c.options.path, payloads.batch(users, trait, True)) for trait in traits]
        for reply in c.at_once(calls):
            need(reply, 200)
        for trait in traits:
            c.holds(trait, dict.fromkeys(users, True))


@check(
    "property.document-url",
    "list",
    "The document prints “POST https://your.domain/lists/$listId/remove” as the URL of "
    "the single and the batch "
    "update.",
    level="should",
)
def property_document_url(c: Context) -> None:
    trait, users = c.trait(), c.users(3)
    path = list_path(c, create(c, trait), "remove")
    need(c.post(path, payloads.identify(users[0], trait, True)), 200, what="single")
    need(c.post(path, payloads.batch(users[1:], trait, True)), 200, what="batch")
    c.holds(trait, dict.fromkeys(users, True))


# Invalid requests


@check("invalid.json", "property", "“400: Invalid request”: a body that is no JSON.")
def invalidto_json(c: Context) -> None:
    for body in (b"", b"{", b"not json", b'{"type": "identify", }', b"{'single': 'quotes'}"):
        need(c.identify(body), 400, what=repr(body))


@check(
    "invalid.shape", "property", "“400: Invalid request”: JSON that is no identify and no batch."
)
def invalid_shape(c: Context) -> None:
    trait, [user] = c.trait(), c.users(1)
    good = payloads.identify(user, trait, True)
    bodies: dict[str, Any] = {
        "a string": "identify",
        "null": None,
        "an empty object": {},
        "no userId": {name: value for name, value in good.items() if name != "userId"},
        "an empty userId": good | {"userId": ""},
        "a list as userId": good | {"userId": ["x"]},
        "no traits": {name: value for name, value in good.items() if name != "traits"},
        "a list as traits": good | {"traits": [trait]},
        "a batch that is no list": {"batch": good},
        "a batch of strings": {"batch": [user]},
    }
    for what, body in bodies.items():
        need(c.identify(body), 400, what=what)
    c.holds(trait, {user: None})


@check(
    "invalid.values",
    "property",
    "“True / False” are the trait's only values: anything else is a 400.",
)
def invalid_values(c: Context) -> None:
    trait, [user] = c.trait(), c.users(1)
    values: tuple[Any, ...] = ("true", 1, 0, None, [], {})
    for value in values:
        body = payloads.identify(user, trait, True) | {"traits": {trait: value}}
        need(c.identify(body), 400, what=f"value {value!r}")
        need(c.identify({"batch": [body]}), 400, what=f"value {value!r} in a batch")
    c.holds(trait, {user: None})


@check(
    "invalid.no-silent-drop",
    "property",
    "“Some destinations return 2xx and silently drop users” is what customers complain "
    "about most: a batch with "
    "one invalid item isn't answered 2xx without a word.",
    source="known",
)
def invalid_no_silent_drop(c: Context) -> str:
    trait, users = c.trait(), c.users(3)
    body = payloads.batch(users, trait, True)
    del body["batch"][1]["userId"]
    reply = c.identify(body)
    if reply.ok:
        answer = reply.json()
        told = isinstance(answer, dict) and any(
            answer.get(word) for word in ("rejected", "errors", "failed", "invalid", "error")
        )
        if not told:
            raise Failed(f"answered {reply.status} {short(reply.body)}, with no word about it")
        return "answered 2xx, and the reply reports the item"
    need(reply, 400)
    return "refused with 400"


@check(
    "invalid.writes-nothing",
    "property",
    "A batch that is refused as invalid isn't half written: Amplitude doesn't send it again.",
    level="should",
    source="known",
)
def invalid_writes_nothing(c: Context) -> str | None:
    if c.reader is None:
        raise Skipped("needs --reader")
    trait, users = c.trait(), c.users(3)
    body = payloads.batch(users, trait, True)
    body["batch"][2]["traits"] = {trait: "true"}
    if c.identify(body).ok:
        return "not refused"
    c.holds(trait, dict.fromkeys(users))
    return None


@check(
    "invalid.never-500",
    "property",
    "Only 200, 400, 401, 404 and 429 are foreseen: whatever is sent, the answer is never "
    "a 5xx, which Amplitude would retry.",
)
def invalid_never_500(c: Context) -> None:
    user = c.users(1)[0]
    trait = c.trait()
    one = b'{"type":"identify","userId":"%b","traits":{"x:1":%b}}'
    bodies: dict[str, bytes] = {
        "invalid UTF-8": b'{"type":"identify","userId":"\xff\xfe","traits":{"x:1":true}}',
        "a lone surrogate": one % (rb"\ud800", b"true"),
        "NUL in the user id": one % (rb"a\u0000b", b"true"),
        "NaN": one % (user.encode(), b"NaN"),
        "a huge number": one % (user.encode(), b"1" * 5_000),
        "deep nesting": b'{"batch":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "deep objects": b'{"traits":' * 50_000 + b"1" + b"}" * 50_000,
        "an array": b"[]",
        "a number": b"1",
        "a duplicate key": b'{"type":"identify","type":1,"userId":"a","userId":2,"traits":{}}',
        "no body": b"",
        "binary": bytes(range(256)),
    }
    for what, body in bodies.items():
        reply = c.identify(body)
        if reply.status is None or reply.status >= 500:
            raise Failed(f"{what}: got {reply}")
    need(c.identify(payloads.identify(user, trait, True)), 200, what="a good request afterwards")


@check("status.404", "property", "“404: Invalid User ID”.")
def status_404(c: Context) -> None:
    if c.options.invalid_user is None:
        raise Skipped("needs --invalid-user ID, a user id that the receiver takes for invalid")
    body = payloads.identify(c.options.invalid_user, c.trait(), True)
    need(c.identify(body), 404)


# Lists


@check(
    "list.create",
    "list",
    "“You must call a list creation API on the first sync.” The answer carries the list's"
    " id (as list_id or "
    "listId, top level or in “response”: the document doesn't say).",
)
def list_create(c: Context) -> str:
    found = create(c, c.trait())
    return f"list id {found!r}"


@check(
    "list.create-again",
    "list",
    "A retry posts the same name again: the same list, not a second one.",
    source="known",
)
def list_create_again(c: Context) -> None:
    trait = c.trait()
    ids = {create(c, trait) for _ in range(3)}
    if len(ids) > 1:
        raise Failed(f"the same name has made several lists: {sorted(ids)}")
    other = create(c, c.trait())
    if other in ids:
        raise Failed(f"another name has got the same list {other!r}")


@check(
    "list.create-at-once",
    "list",
    "Four threads may create the same list at once: one list.",
    source="known",
)
def list_create_at_once(c: Context) -> None:
    for _ in range(5):
        call = (c.options.lists_path, payloads.list_create(c.trait()))
        ids = {list_id(need(reply, 200).json()) for reply in c.at_once([call] * 4)}
        if len(ids) > 1:
            raise Failed(f"the same name has made several lists: {sorted(map(str, ids))}")


@check(
    "list.add-and-remove",
    "list",
    "“Make subsequent calls to the add API and remove API to keep the list membership up to date.”",
)
def list_add_remove(c: Context) -> None:
    trait, users = c.trait(), c.users(20)
    found = create(c, trait)
    need(c.post(list_path(c, found, "add"), payloads.list_users(users)), 200)
    c.holds(trait, dict.fromkeys(users, True))
    need(c.post(list_path(c, found, "remove"), payloads.list_users(users[:5])), 200)
    c.holds(trait, dict.fromkeys(users[:5], False) | dict.fromkeys(users[5:], True))


@check(
    "list.repeat",
    "list",
    "“If a request fails, Amplitude retries”: repeated adds and removes are answered 200.",
)
def list_repeat(c: Context) -> None:
    trait, users = c.trait(), c.users(5)
    found = create(c, trait)
    for call, member in (("add", True), ("remove", False), ("add", True)):
        for _ in range(2):
            need(c.post(list_path(c, found, call), payloads.list_users(users)), 200, what=call)
        c.holds(trait, dict.fromkeys(users, member))


@check(
    "list.create-keeps-members",
    "list",
    "A list creation that is repeated later doesn't empty the list.",
    source="known",
)
def list_create_keeps(c: Context) -> None:
    trait, users = c.trait(), c.users(3)
    need(c.post(list_path(c, create(c, trait), "add"), payloads.list_users(users)), 200)
    create(c, trait)
    c.holds(trait, dict.fromkeys(users, True))


@check("list.1000-users", "list", "“By default, batches have 1000 users.”")
def list_1000(c: Context) -> str:
    trait, users = c.trait(), c.users(1_000)
    path = list_path(c, create(c, trait), "add")
    reply = need(c.post(path, payloads.list_users(users)), 200)
    c.holds(trait, dict.fromkeys(users, True))
    return f"answered in {reply.seconds:.3f} s"


@check(
    "list.four-at-once",
    "list",
    "“By default, Amplitude uses 4 threads”: adds and removes of other users at the same time.",
)
def list_four(c: Context) -> None:
    trait, users = c.trait(), c.users(400)
    found = create(c, trait)
    need(c.post(list_path(c, found, "add"), payloads.list_users(users[:200])), 200)
    calls = [
        (list_path(c, found, "remove"), payloads.list_users(users[:100])),
        (list_path(c, found, "remove"), payloads.list_users(users[100:200])),
        (list_path(c, found, "add"), payloads.list_users(users[200:300])),
        (list_path(c, found, "add"), payloads.list_users(users[300:])),
    ]
    for reply in c.at_once(calls):
        need(reply, 200)
    c.holds(trait, dict.fromkeys(users[:200], False) | dict.fromkeys(users[200:], True))


@check(
    "list.invalid", "list", "“400: Invalid request”: a list without a name, users that are no list."
)
def list_invalid(c: Context) -> None:
    trait, users = c.trait(), c.users(2)
    lists: tuple[Any, ...] = ({}, {"name": ""}, {"name": 5}, [trait])
    for body in lists:
        need(c.post(c.options.lists_path, body), 400, what=f"create {body!r}")
    path = list_path(c, create(c, trait), "add")
    adds: tuple[Any, ...] = ({}, {"userIds": users[0]}, {"userIds": [""]}, {"userIds": [None]})
    for body in adds:
        need(c.post(path, body), 400, what=f"add {body!r}")
    need(c.post(path, b"{"), 400, what="add '{'")
    c.holds(trait, dict.fromkeys(users))


@check(
    "list.unknown", "list", "A list that was never made is a 404.", level="should", source="known"
)
def list_unknown(c: Context) -> None:
    path = list_path(c, f"never-made-{c.users(1)[0]}", "add")
    need(c.post(path, payloads.list_users(c.users(1))), 404)


@check(
    "list.no-users",
    "list",
    "An add without users is fine and changes nothing.",
    level="should",
    source="known",
)
def list_no_users(c: Context) -> None:
    need(c.post(list_path(c, create(c, c.trait()), "add"), payloads.list_users([])), 200)


@check(
    "list.user_ids",
    "list",
    "“userIds” in the document; “user_ids” also occurs in the wild.",
    level="should",
    source="known",
)
def list_user_ids(c: Context) -> None:
    trait, users = c.trait(), c.users(2)
    path = list_path(c, create(c, trait), "add")
    need(c.post(path, {"user_ids": users, "context": payloads.context()}), 200)
    c.holds(trait, dict.fromkeys(users, True))


@check(
    "list.names",
    "list",
    "Cohort names may hold colons, quotes, backslashes, “<”, emoji.",
    source="known",
)
def list_names(c: Context) -> None:
    for name in ("a: b/c?d", 'say "hi"', "back\\slash", "<b>", "日本語 🎉"):
        trait, [user] = c.trait(name), c.users(1)
        need(c.post(list_path(c, create(c, trait), "add"), payloads.list_users([user])), 200)
        c.holds(trait, {user: True})


# Cohort Webhooks


@check(
    "webhook.enter-and-exit",
    "webhook",
    "The default body, with in_cohort true and false, is answered 200.",
    source="known",
)
def webhook_enter_exit(c: Context) -> None:
    cohort, users = c.cohort(), c.users(20)
    trait, now = payloads.trait_name(*cohort), int(time.time())
    need(c.webhook(hook(c, cohort, users, True, now - 10)), 200)
    c.holds(trait, dict.fromkeys(users, True))
    need(c.webhook(hook(c, cohort, users[:5], False, now)), 200)
    c.holds(trait, dict.fromkeys(users[:5], False) | dict.fromkeys(users[5:], True))


@check(
    "webhook.repeat",
    "webhook",
    "A retry carries the same message_id: it is answered 200 and changes nothing.",
    source="known",
)
def webhook_repeat(c: Context) -> None:
    cohort, users, now = c.cohort(), c.users(5), int(time.time())
    body = hook(c, cohort, users, True, now)
    for _ in range(3):
        need(c.webhook(body), 200)
    c.holds(payloads.trait_name(*cohort), dict.fromkeys(users, True))


@check(
    "webhook.late",
    "webhook",
    "A retry can arrive after a newer message: computed_time decides, not the order of arrival.",
    source="known",
)
def webhook_late(c: Context) -> None:
    cohort, users, now = c.cohort(), c.users(4), int(time.time())
    trait = payloads.trait_name(*cohort)
    enter = hook(c, cohort, users, True, now - 3600)
    need(c.webhook(enter), 200)
    need(c.webhook(hook(c, cohort, users[:2], False, now)), 200)
    need(c.webhook(enter), 200, what="the late retry")
    c.holds(trait, dict.fromkeys(users[:2], False) | dict.fromkeys(users[2:], True))
    never_applied = hook(c, cohort, users[:2], True, now - 1800)
    need(c.webhook(never_applied), 200, what="a late first attempt")
    c.holds(trait, dict.fromkeys(users[:2], False) | dict.fromkeys(users[2:], True))
    need(c.webhook(hook(c, cohort, users[:1], True, now)), 200)


@check("webhook.1000-users", "webhook", "“By default, batches have 1000 users.”", source="known")
def webhook_1000(c: Context) -> str:
    cohort, users = c.cohort(), c.users(1_000)
    reply = need(c.webhook(hook(c, cohort, users, True)), 200)
    c.holds(payloads.trait_name(*cohort), dict.fromkeys(users, True))
    return f"answered in {reply.seconds:.3f} s"


@check(
    "webhook.within-2s",
    "webhook",
    "“The destination must process each batch within 1 to 2 seconds (including network latency).”",
    source="known",
)
def webhook_2s(c: Context) -> str:
    cohort = c.cohort()
    return deadline(c, lambda users: c.webhook(hook(c, cohort, users, True)), 2.0)


@check(
    "webhook.within-1s",
    "webhook",
    "“… within 1 to 2 seconds”: who answers within 1 is safe.",
    level="should",
    source="known",
)
def webhook_1s(c: Context) -> str:
    cohort = c.cohort()
    return deadline(c, lambda users: c.webhook(hook(c, cohort, users, True)), 1.0)


@check(
    "webhook.user-properties",
    "webhook",
    "The template's users may carry user_properties; unknown fields are ignored.",
    source="known",
)
def webhook_properties(c: Context) -> None:
    cohort, [user] = c.cohort(), c.users(1)
    body = hook(c, cohort, [user], True) | {"extra": 1}
    body["users"][0]["user_properties"] = {"city": "San Francisco", "nested": {"a": [1]}}
    need(c.webhook(body), 200)
    c.holds(payloads.trait_name(*cohort), {user: True})


@check(
    "webhook.numeric-ids",
    "webhook",
    "A template without quotes around the id sends it as a number.",
    level="should",
    source="known",
)
def webhook_numbers(c: Context) -> None:
    cohort, number = c.cohort(), int(c.users(1)[0][:12], 16)
    body = hook(c, cohort, [], True)
    body["users"] = [{"user_id": number}]
    need(c.webhook(body), 200)
    c.holds(payloads.trait_name(*cohort), {str(number): True})


@check(
    "webhook.broken-template",
    "webhook",
    "The default template pastes names in unescaped: with a quote in it the body is no "
    "JSON, which is a 400, not a 5xx.",
    source="known",
)
def webhook_broken(c: Context) -> None:
    body = b'{"cohort_name": "the "best" users", "cohort_id": "x", "in_cohort": true, "users": []}'
    need(c.webhook(body), 400)


@check(
    "webhook.invalid", "webhook", "“400: Invalid request”: what is needed to apply it is missing."
)
def webhook_invalid(c: Context) -> None:
    cohort, users = c.cohort(), c.users(1)
    good = hook(c, cohort, users, True)
    for missing in ("cohort_id", "in_cohort", "users"):
        body = {name: value for name, value in good.items() if name != missing}
        need(c.webhook(body), 400, what=f"no {missing}")
    need(c.webhook(good | {"users": [{}]}), 400, what="a user without user_id")
    c.holds(payloads.trait_name(*cohort), dict.fromkeys(users))


@check(
    "ways.same-cohort",
    "list",
    "A cohort is its id and name, however it comes: list, property and webhook set the same trait.",
    level="should",
    source="known",
)
def ways_same(c: Context) -> str | None:
    if c.reader is None:
        raise Skipped("needs --reader")
    cohort, [user] = c.cohort(), c.users(1)
    trait = payloads.trait_name(*cohort)
    path = list_path(c, create(c, trait), "add")
    need(c.post(path, payloads.list_users([user])), 200, what="list")
    c.has_exactly(user, {trait: True})
    if "property" in c.options.ways:
        need(c.identify(payloads.identify(user, trait, False)), 200, what="property")
        c.has_exactly(user, {trait: False})
    if "webhook" in c.options.ways:
        now = int(time.time())
        # A webhook's time is in whole seconds: what came before it must be older than that.
        while time.time() < now + 1:
            time.sleep(0.05)
        need(c.webhook(hook(c, cohort, [user], True, int(time.time()))), 200, what="webhook")
        c.has_exactly(user, {trait: True})
    return None


# The network


@check(
    "network.cut-body",
    "property",
    "A connection that ends half way through the body leaves no trace and harms nobody.",
    source="known",
)
def network_cut(c: Context) -> None:
    trait, users = c.trait(), c.users(500)
    body = payloads.batch(users, trait, True)
    with c.wire() as wire:
        for _ in range(3):
            wire.post_half(c.options.path, to_json(body))
        need(c.identify(payloads.identify(users[0], trait, False)), 200, what="the next request")
    # The receiver may still be reading; what it is going to write it writes soon.
    time.sleep(0.3 if c.reader is not None else 0)
    c.holds(trait, {users[0]: False} | dict.fromkeys(users[1:]))
    need(c.identify(body), 200, what="the retry")
    c.holds(trait, dict.fromkeys(users, True))


@check(
    "network.slow-body",
    "property",
    "A sender on a slow connection doesn't stop the others: eight slow bodies, and a "
    "quick request between them.",
    level="should",
    source="known",
)
def network_slow(c: Context) -> str:
    trait, users, quick = c.trait(), c.users(8), c.users(1)
    ended: list[Reply] = []

    def slow(user: str) -> None:
        with c.wire() as wire:
            body = to_json(payloads.identify(user, trait, True))
            ended.append(c.patiently(lambda: wire.post_slowly(c.options.path, body, 1.2)))

    threads = [threading.Thread(target=slow, args=(user,), daemon=True) for user in users]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    reply = need(c.identify(payloads.identify(quick[0], trait, True)), 200)
    for thread in threads:
        thread.join()
    for each in ended:
        need(each, 200, what="a slow body")
    if reply.seconds > 0.5:
        raise Failed(f"the quick request took {reply.seconds:.2f} s")
    c.holds(trait, dict.fromkeys([*users, *quick], True))
    return f"the quick request took {reply.seconds:.3f} s"


# Whole syncs


@check(
    "sync.property",
    "property",
    "First sync in full, later ones as differences, with duplicates, lost replies, cut "
    "bodies and late retries: all answered; with --reader, the state is compared with the truth.",
)
def sync_property(c: Context) -> str:
    return whole_sync(c, "property", c.options.path)


@check("sync.list", "list", "The same by list creation, add and remove.")
def sync_list(c: Context) -> str:
    return whole_sync(c, "list", c.options.lists_path)


@check(
    "sync.webhook",
    "webhook",
    "The same by Cohort Webhooks, where the late retries must not win.",
    source="known",
)
def sync_webhook(c: Context) -> str:
    return whole_sync(c, "webhook", c.options.webhook_path)


def whole_sync(c: Context, mode: SyncMode, path: str) -> str:
    name, cohort_id = c.cohort("Whole sync")
    cohort = Cohort.synthetic(name, cohort_id, 2_000, churn=0.2, seed=c.options.seed)
    with CohortSync(
        c.options.target,
        cohort,
        mode=mode,
        path=path,
        batch_size=100,
        time_scale=0.02,
        seed=c.options.seed,
        misbehaviour=Misbehaviour(
            duplicate=0.1, reorder=0.2, drop_reply=0.1, cut=0.1, late=0.1, slow=0.0
        ),
    ) as sync:
        results = sync.run(4)
        problems = [problem for result in results for problem in result.problems]
        if problems:
            raise Failed(problems[0])
        if sync.stats.users_rejected:
            raise Failed(f"{sync.stats.users_rejected} users were not taken")
        told = f"{sync.stats.requests} requests, {sync.stats.retries} of them retries"
        if c.reader is None:
            return f"{told}; the state was not compared"
        compared = compare(sync.truth, c.reader)
        if not compared.ok:
            examples = "; ".join(map(str, compared.examples[:3]))
            raise Failed(f"{compared.wrong} of {compared.checked} users are wrong: {examples}")
        return f"{told}; {compared.checked:,} users compared"


@check(
    "status.429",
    "property",
    "“429: Throttling/rate limiting”; afterwards requests are taken again.",
)
def status_429(c: Context) -> str:
    if c.options.throttle is None:
        raise Skipped("needs --throttle N, a burst of requests that the receiver throttles")
    trait = c.trait()
    calls = [
        (c.options.path, payloads.identify(user, trait, True))
        for user in c.users(c.options.throttle)
    ]
    statuses = []
    for start in range(0, len(calls), 50):
        replies = c.at_once(calls[start : start + 50], patient=False)
        statuses += [need(reply, 200, 429).status for reply in replies]
    throttled = statuses.count(429)
    if not throttled:
        raise Failed(f"none of {len(calls)} requests was answered 429")
    deadline_at = time.monotonic() + 65
    while (reply := c.identify(calls[0][1])).status == 429 and time.monotonic() < deadline_at:
        pass  # each waits a while itself
    need(reply, 200, what="after the burst")
    return f"{throttled} of {len(calls)} were answered 429"


# What the checks share


def hook(
    c: Context,
    cohort: tuple[str, str],
    users: Sequence[str],
    member: bool,
    computed_time: int | None = None,
) -> dict[str, Any]:
    """Return a webhook's body about one cohort, computed now unless told otherwise."""
    return payloads.webhook(
        *cohort,
        users,
        member,
        computed_time=int(time.time()) if computed_time is None else computed_time,
        message_id=c.message_id(member),
    )


def create(c: Context, trait: str) -> str:
    """Create a list and return its id."""
    reply = need(c.post(c.options.lists_path, payloads.list_create(trait)), 200, what="create")
    found = list_id(reply.json())
    if found is None:
        raise Failed(f"no list id in the answer to the creation: {short(reply.body)}")
    return found


def list_path(c: Context, found: str, call: str) -> str:
    """Return the path of a list's add or remove call."""
    return f"{c.options.lists_path.rstrip('/')}/{quote(found, safe='')}/{call}"
