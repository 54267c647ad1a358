"""Credentials: every documented way to send the key, and 401 without a valid one."""

from __future__ import annotations

from ... import payloads
from ..context import Context, expect
from .calls import create_list, list_path, webhook_body
from .group import CheckGroup

group = CheckGroup()


@group.check(
    "credentials.basic",
    "property",
    "“The partner must send the api_key as the username and an empty password.”",
)
def credentials_basic(c: Context) -> None:
    trait, [user] = c.trait(), c.users(1)
    expect(c.identify(payloads.identify(user, trait, True), target=c.target("basic")), 200)
    c.expect_trait(trait, {user: True})


@group.check(
    "credentials.headers",
    "property",
    "Amplitude's documented test request: --header 'api_key: …' --header 'app_id: …', the trait "
    "“cohort name:123”, no context.",
)
def credentials_headers(c: Context) -> None:
    _, cohort_id = c.cohort()
    trait, [user] = f"cohort name:{cohort_id}", c.users(1)
    body = {"traits": {trait: True}, "type": "identify", "userId": user}
    expect(c.identify(body, target=c.target("headers")), 200)
    c.expect_trait(trait, {user: True})


@group.check(
    "credentials.bearer",
    "property",
    "An integration can be set up with a Bearer token.",
    level="should",
    origin="known",
)
def credentials_bearer(c: Context) -> None:
    trait, [user] = c.trait(), c.users(1)
    expect(c.identify(payloads.identify(user, trait, True), target=c.target("bearer")), 200)
    c.expect_trait(trait, {user: True})


@group.check("credentials.missing", "property", "“401: Unauthorized (bad api_key)”: without a key.")
def credentials_missing(c: Context) -> None:
    trait, [user] = c.trait(), c.users(1)
    expect(c.identify(payloads.identify(user, trait, True), target=c.target("none")), 401)
    c.expect_trait(trait, {user: None})


@group.check(
    "credentials.wrong",
    "property",
    "“401: Unauthorized (bad api_key)”: with a wrong key, as Basic, header or Bearer token.",
)
def credentials_wrong(c: Context) -> None:
    trait, [user] = c.trait(), c.users(1)
    wrong = f"not-{c.message_id()}"
    for auth in ("basic", "headers", "bearer"):
        body = payloads.identify(user, trait, True)
        expect(c.identify(body, target=c.target(auth, wrong)), 401, label=auth)
    c.expect_trait(trait, {user: None})


@group.check("credentials.lists", "list", "“401: Unauthorized (bad api_key)”: at the list URLs.")
def credentials_lists(c: Context) -> None:
    refused, trait, users = c.target("none"), c.trait(), c.users(2)
    body = payloads.list_create(trait)
    expect(c.post(c.options.lists_path, body, target=refused), 401, label="create")
    found = create_list(c, trait)
    for call in ("add", "remove"):
        path = list_path(c, found, call)
        expect(c.post(path, payloads.list_users(users), target=refused), 401, label=call)
    c.expect_trait(trait, dict.fromkeys(users))


@group.check(
    "credentials.webhook", "webhook", "“401: Unauthorized (bad api_key)”: at the webhook URL."
)
def credentials_webhook(c: Context) -> None:
    cohort, users = c.cohort(), c.users(2)
    body = webhook_body(c, cohort, users, True)
    expect(c.webhook(body, target=c.target("none")), 401)
    c.expect_trait(payloads.trait_name(*cohort), dict.fromkeys(users))
