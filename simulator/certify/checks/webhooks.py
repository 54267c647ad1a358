"""Cohort Webhooks."""

from __future__ import annotations

import time

from ... import payloads
from ..context import Context, expect
from .calls import BAD_IDS, numeric_id, time_batches, users_around_bad_ids, webhook_body
from .group import CheckGroup

group = CheckGroup()


@group.check(
    "webhook.enter-and-exit",
    "webhook",
    "The default body, with in_cohort true or false, returns 200.",
    origin="known",
)
def webhook_enter_exit(c: Context) -> None:
    cohort, users = c.cohort(), c.users(20)
    trait, now = payloads.trait_name(*cohort), int(time.time())
    expect(c.webhook(webhook_body(c, cohort, users, True, now - 10)), 200)
    c.expect_trait(trait, dict.fromkeys(users, True))
    expect(c.webhook(webhook_body(c, cohort, users[:5], False, now)), 200)
    c.expect_trait(trait, dict.fromkeys(users[:5], False) | dict.fromkeys(users[5:], True))


@group.check(
    "webhook.repeat",
    "webhook",
    "A retry carries the same message_id: it returns 200 and changes nothing.",
    origin="known",
)
def webhook_repeat(c: Context) -> None:
    cohort, users, now = c.cohort(), c.users(5), int(time.time())
    body = webhook_body(c, cohort, users, True, now)
    for _ in range(3):
        expect(c.webhook(body), 200)
    c.expect_trait(payloads.trait_name(*cohort), dict.fromkeys(users, True))


@group.check(
    "webhook.late",
    "webhook",
    "A retry may arrive after a newer message: computed_time decides, not the order of arrival.",
    origin="known",
)
def webhook_late(c: Context) -> None:
    cohort, users, now = c.cohort(), c.users(4), int(time.time())
    trait = payloads.trait_name(*cohort)
    enter = webhook_body(c, cohort, users, True, now - 3600)
    expect(c.webhook(enter), 200)
    expect(c.webhook(webhook_body(c, cohort, users[:2], False, now)), 200)
    expect(c.webhook(enter), 200, label="the late retry")
    c.expect_trait(trait, dict.fromkeys(users[:2], False) | dict.fromkeys(users[2:], True))
    never_applied = webhook_body(c, cohort, users[:2], True, now - 1800)
    expect(c.webhook(never_applied), 200, label="a late first attempt")
    c.expect_trait(trait, dict.fromkeys(users[:2], False) | dict.fromkeys(users[2:], True))
    expect(c.webhook(webhook_body(c, cohort, users[:1], True, now)), 200)


@group.check(
    "webhook.1000-users", "webhook", "“By default, batches have 1000 users.”", origin="known"
)
def webhook_1000(c: Context) -> str:
    cohort, users = c.cohort(), c.users(1_000)
    reply = expect(c.webhook(webhook_body(c, cohort, users, True)), 200)
    c.expect_trait(payloads.trait_name(*cohort), dict.fromkeys(users, True))
    return f"reply after {reply.seconds:.3f} s"


@group.check(
    "webhook.within-2s",
    "webhook",
    "“The destination must process each batch within 1 to 2 seconds (including network latency).”",
    origin="known",
)
def webhook_2s(c: Context) -> str:
    cohort = c.cohort()
    return time_batches(c, lambda users: c.webhook(webhook_body(c, cohort, users, True)), 2.0)


@group.check(
    "webhook.within-1s",
    "webhook",
    "“… within 1 to 2 seconds”: within 1 second is safe.",
    level="should",
    origin="known",
)
def webhook_1s(c: Context) -> str:
    cohort = c.cohort()
    return time_batches(c, lambda users: c.webhook(webhook_body(c, cohort, users, True)), 1.0)


@group.check(
    "webhook.user-properties",
    "webhook",
    "A template may add user_properties to the users; unknown fields are ignored.",
    origin="known",
)
def webhook_properties(c: Context) -> None:
    cohort, [user] = c.cohort(), c.users(1)
    body = webhook_body(c, cohort, [user], True) | {"extra": 1}
    body["users"][0]["user_properties"] = {"city": "San Francisco", "nested": {"a": [1]}}
    expect(c.webhook(body), 200)
    c.expect_trait(payloads.trait_name(*cohort), {user: True})


@group.check(
    "webhook.5000-users-with-properties",
    "webhook",
    "A template may add up to 50 user properties: 5 MB for 5,000 users.",
    level="should",
    origin="known",
)
def webhook_many_properties(c: Context) -> str:
    cohort, users = c.cohort(), c.users(5_000)
    properties = {f"property {n}": f"value {n}" for n in range(50)}
    body = webhook_body(c, cohort, users, True)
    for user in body["users"]:
        user["user_properties"] = properties
    reply = expect(c.webhook(body), 200)
    c.expect_trait(payloads.trait_name(*cohort), dict.fromkeys(users, True))
    return f"reply after {reply.seconds:.3f} s"


@group.check(
    "webhook.bad-id",
    "webhook",
    "An anonymous user, who has no user id, doesn't keep the others from being updated.",
    origin="known",
)
def webhook_bad_id(c: Context) -> None:
    cohort, cases, now = c.cohort(), users_around_bad_ids(c), int(time.time())
    for bad_id, users in cases:
        body = webhook_body(c, cohort, users, True, now)
        body["users"].insert(1, {"user_id": bad_id})
        expect(c.webhook(body), 200, label=f"id {bad_id!r} between two good ones")
        c.expect_trait(payloads.trait_name(*cohort), dict.fromkeys(users, True))


@group.check(
    "webhook.only-bad-ids",
    "webhook",
    "“404: Invalid User ID”, if no user has a usable id.",
    level="should",
)
def webhook_only_bad_ids(c: Context) -> None:
    body = webhook_body(c, c.cohort(), [], True)
    body["users"] = [{"user_id": bad_id} for bad_id in BAD_IDS]
    expect(c.webhook(body), 404)


@group.check(
    "webhook.numeric-ids",
    "webhook",
    "A template without quotes around the user id sends a number.",
    level="should",
    origin="known",
)
def webhook_numbers(c: Context) -> None:
    cohort, number = c.cohort(), numeric_id(c)
    body = webhook_body(c, cohort, [], True)
    body["users"] = [{"user_id": number}]
    expect(c.webhook(body), 200)
    c.expect_trait(payloads.trait_name(*cohort), {str(number): True})


@group.check(
    "webhook.broken-template",
    "webhook",
    "The default template doesn't escape names, so a quote in one makes the body invalid "
    "JSON: 400, not a 5xx.",
    origin="known",
)
def webhook_broken(c: Context) -> None:
    body = b'{"cohort_name": "the "best" users", "cohort_id": "x", "in_cohort": true, "users": []}'
    expect(c.webhook(body), 400)


@group.check("webhook.invalid", "webhook", "“400: Invalid request”: a required field is missing.")
def webhook_invalid(c: Context) -> None:
    cohort, users = c.cohort(), c.users(1)
    good = webhook_body(c, cohort, users, True)
    for missing in ("cohort_id", "in_cohort", "users"):
        body = {name: value for name, value in good.items() if name != missing}
        expect(c.webhook(body), 400, label=f"no {missing}")
    expect(c.webhook(good | {"users": [{}]}), 400, 404, label="a user without user_id")
    c.expect_trait(payloads.trait_name(*cohort), dict.fromkeys(users))
