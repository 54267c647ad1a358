"""Property-based cohorts: identifies and batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ... import payloads
from ...connection import Reply
from ..context import Context, Skipped, expect
from .calls import BAD_IDS, create_list, list_path, numeric_id, time_batches, users_around_bad_ids
from .group import CheckGroup

group = CheckGroup()


@group.check(
    "property.single",
    "property",
    "“Amplitude sets the property for cohort members to true when a user becomes part of the "
    "cohort … to false when a user leaves the cohort.” “200: Success”.",
)
def property_single(c: Context) -> None:
    trait, [user] = c.trait(), c.users(1)
    for member in (True, False, True):
        expect(c.identify(payloads.identify(user, trait, member)), 200)
        c.expect_trait(trait, {user: member})
    c.expect_exact_traits(user, {trait: True})


@group.check(
    "property.batch",
    "property",
    "“Amplitude uses a bulk API and batches multiple users in a single request.”",
)
def property_batch(c: Context) -> None:
    trait, users = c.trait(), c.users(50)
    expect(c.identify(payloads.batch(users, trait, True)), 200)
    c.expect_trait(trait, dict.fromkeys(users, True))
    expect(c.identify(payloads.batch(users[:20], trait, False)), 200)
    c.expect_trait(trait, dict.fromkeys(users[:20], False) | dict.fromkeys(users[20:], True))


@group.check(
    "property.spellings",
    "property",
    "The trait is “[Amplitude] {$cohort_name}: {$cohort_id}” in the payloads, but “cohort "
    "name:123” in the test request.",
)
def property_spellings(c: Context) -> None:
    _, cohort_id = c.cohort()
    users = c.users(2)
    for user, trait in zip(
        users, (f"[Amplitude] cohort name: {cohort_id}", f"cohort name:{cohort_id}1"), strict=True
    ):
        expect(c.identify(payloads.identify(user, trait, True)), 200, label=trait)
        c.expect_exact_traits(user, {trait: True})


@group.check(
    "property.names",
    "property",
    "Cohort names may contain colons, quotes, backslashes, “<” and emoji.",
    origin="known",
)
def property_names(c: Context) -> None:
    names = ("a: b: c", 'say "hi"', "back\\slash", "<b>&amp;", "Ünïcode 日本語 🎉", "{x}", "it's")
    for name, user in zip(names, c.users(len(names)), strict=True):
        trait = c.trait(name)
        expect(c.identify(payloads.identify(user, trait, True)), 200, label=name)
        c.expect_exact_traits(user, {trait: True})


@group.check(
    "property.user-ids",
    "property",
    "User ids are whatever the customer sends to Amplitude: e-mail addresses, numbers, any script.",
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
    expect(c.identify(payloads.batch(users, trait, True)), 200)
    c.expect_trait(trait, dict.fromkeys(users, True))
    lower = users[0].lower()
    c.expect_trait(trait, {lower: None})


@group.check(
    "property.bad-id",
    "property",
    "A user without a usable id doesn't keep the others in the batch from being updated.",
    origin="known",
)
def property_bad_id(c: Context) -> None:
    trait, cases = c.trait(), users_around_bad_ids(c)
    for bad_id, users in cases:
        body = payloads.batch(users, trait, True)
        body["batch"].insert(1, payloads.identify("", trait, True) | {"userId": bad_id})
        expect(c.identify(body), 200, label=f"id {bad_id!r} between two good ones")
        c.expect_trait(trait, dict.fromkeys(users, True))


@group.check(
    "property.only-bad-ids",
    "property",
    "“404: Invalid User ID”, if no user of a batch has a usable id.",
    level="should",
)
def property_only_bad_ids(c: Context) -> None:
    item = payloads.identify("", c.trait(), True)
    expect(c.identify({"batch": [item | {"userId": bad_id} for bad_id in BAD_IDS]}), 404)


@group.check(
    "property.numeric-ids",
    "property",
    "An item template without quotes around the user id sends a number.",
    level="should",
    origin="known",
)
def property_numbers(c: Context) -> None:
    trait, numbers = c.trait(), [numeric_id(c), numeric_id(c)]
    items = [payloads.identify("", trait, True) | {"userId": number} for number in numbers]
    expect(c.identify(items[0]), 200, label="single")
    expect(c.identify({"batch": items[1:]}), 200, label="batch")
    c.expect_trait(trait, {str(number): True for number in numbers})


@group.check(
    "property.two-cohorts",
    "property",
    "“Amplitude sends a separate request for each cohort a user belongs to.”",
)
def property_two_cohorts(c: Context) -> None:
    first, second, [user] = c.trait("First"), c.trait("Second"), c.users(1)
    expect(c.identify(payloads.identify(user, first, True)), 200)
    expect(c.identify(payloads.identify(user, second, True)), 200)
    expect(c.identify(payloads.identify(user, first, False)), 200)
    c.expect_exact_traits(user, {first: False, second: True})


@group.check(
    "property.repeat",
    "property",
    "“If a request fails, Amplitude retries”: repeating a request returns 200 and changes nothing.",
)
def property_repeat(c: Context) -> None:
    trait, users = c.trait(), c.users(10)
    for _ in range(3):
        expect(c.identify(payloads.batch(users, trait, True)), 200)
    c.expect_trait(trait, dict.fromkeys(users, True))
    expect(c.identify(payloads.batch(users, trait, False)), 200)
    expect(c.identify(payloads.batch(users, trait, False)), 200)
    c.expect_trait(trait, dict.fromkeys(users, False))


@group.check(
    "property.leave-first",
    "property",
    "A user may be set to false without having been true before: an earlier sync may have failed.",
)
def property_leave_first(c: Context) -> None:
    trait, [user] = c.trait(), c.users(1)
    expect(c.identify(payloads.identify(user, trait, False)), 200)
    c.expect_trait(trait, {user: False})


@group.check(
    "property.unknown-fields",
    "property",
    "Senders add fields: unknown ones are ignored.",
    origin="known",
)
def property_unknown_fields(c: Context) -> None:
    trait, users = c.trait(), c.users(2)
    extra: dict[str, Any] = {"messageId": "m", "sentAt": "2024-01-01T00:00:00Z", "x": {"y": [1]}}
    expect(c.identify(payloads.identify(users[0], trait, True, **extra)), 200, label="single")
    body = payloads.batch(users[1:], trait, True) | extra
    body["batch"][0] |= extra
    body["batch"][0]["context"]["library"] = {"name": "x"}
    expect(c.identify(body), 200, label="batch")
    c.expect_trait(trait, dict.fromkeys(users, True))


@group.check(
    "property.no-context", "property", "Amplitude's documented test request has no context."
)
def property_no_context(c: Context) -> None:
    trait, users = c.trait(), c.users(2)
    single = payloads.identify(users[0], trait, True)
    del single["context"]
    expect(c.identify(single), 200, label="single")
    body = payloads.batch(users[1:], trait, True)
    del body["batch"][0]["context"]
    expect(c.identify(body), 200, label="batch")
    c.expect_trait(trait, dict.fromkeys(users, True))


@group.check(
    "property.charset",
    "property",
    "Content-Type may include a charset.",
    level="should",
    origin="known",
)
def property_charset(c: Context) -> None:
    trait, [user] = c.trait("Ünï"), c.users(1)
    headers = {"Content-Type": "application/json; charset=utf-8"}
    expect(c.identify(payloads.identify(user, trait, True), headers=headers), 200)
    c.expect_trait(trait, {user: True})


@group.check("property.1000-users", "property", "“By default, batches have 1000 users.”")
def property_1000_users(c: Context) -> str:
    return send_batch(c, 1_000)


@group.check(
    "property.10000-users",
    "property",
    "“… but the batch size is configurable”: 10,000 on another page of Amplitude's.",
    level="should",
    origin="known",
)
def property_10000_users(c: Context) -> str:
    return send_batch(c, 10_000)


@group.check(
    "property.within-2s",
    "property",
    "Amplitude waits 1 to 2 seconds for the reply to a batch (published for webhooks), then "
    "retries.",
    level="should",
    origin="known",
)
def property_within_2s(c: Context) -> str:
    trait = c.trait()

    def send(users: Sequence[str]) -> Reply:
        return c.identify(payloads.batch(users, trait, True))

    return time_batches(c, send, 2.0)


@group.check(
    "property.four-at-once",
    "property",
    "“By default, Amplitude uses 4 threads to make requests to the downstream platform.”",
)
def property_four_at_once(c: Context) -> str:
    trait, users = c.trait(), c.users(4_000)
    parts = [users[start : start + 1_000] for start in range(0, 4_000, 1_000)]
    calls = [(c.options.path, payloads.batch(part, trait, True)) for part in parts]
    replies = [expect(reply, 200) for reply in c.post_at_once(calls)]
    c.expect_trait(trait, dict.fromkeys(users, True))
    return f"slowest: {max(reply.seconds for reply in replies):.3f} s"


@group.check(
    "property.same-at-once",
    "property",
    "A retry may overlap with the original request: both return 200.",
)
def property_same_at_once(c: Context) -> None:
    trait, users = c.trait(), c.users(500)
    body = payloads.batch(users, trait, True)
    for reply in c.post_at_once([(c.options.path, body)] * 4):
        expect(reply, 200)
    c.expect_trait(trait, dict.fromkeys(users, True))


@group.check(
    "property.cohorts-at-once",
    "property",
    "“Amplitude sends a separate request for each cohort a user belongs to”: concurrent "
    "requests for different cohorts don't overwrite each other.",
)
def property_cohorts_at_once(c: Context) -> None:
    if c.reader is None:
        raise Skipped("needs --reader")
    users = c.users(100)
    for _ in range(5):
        traits = [c.trait() for _ in range(4)]
        calls = [(c.options.path, payloads.batch(users, trait, True)) for trait in traits]
        for reply in c.post_at_once(calls):
            expect(reply, 200)
        for trait in traits:
            c.expect_trait(trait, dict.fromkeys(users, True))


@group.check(
    "property.document-url",
    "list",
    "The document prints “POST https://your.domain/lists/$listId/remove” as the URL of the "
    "single and the batch update.",
    level="should",
)
def property_document_url(c: Context) -> None:
    trait, users = c.trait(), c.users(3)
    path = list_path(c, create_list(c, trait), "remove")
    expect(c.post(path, payloads.identify(users[0], trait, True)), 200, label="single")
    expect(c.post(path, payloads.batch(users[1:], trait, True)), 200, label="batch")
    c.expect_trait(trait, dict.fromkeys(users, True))


def send_batch(c: Context, size: int) -> str:
    trait, users = c.trait(), c.users(size)
    reply = expect(c.identify(payloads.batch(users, trait, True)), 200)
    c.expect_trait(trait, dict.fromkeys(users, True))
    return f"reply after {reply.seconds:.3f} s"
