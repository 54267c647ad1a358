"""List-based cohorts: list creation, add and remove."""

from __future__ import annotations

from typing import Any

from ... import payloads
from ...replies import excerpt, list_id, list_id_at
from ..context import Context, Failed, expect
from .calls import BAD_IDS, create_list, list_path, numeric_id, users_around_bad_ids
from .group import CheckGroup

group = CheckGroup()


@group.check(
    "list.id-for-testing",
    "list",
    "Amplitude's Testing tab wraps the reply to a list creation in “response” and reads the list "
    "id at the path set in the portal (--list-id-path).",
    origin="known",
)
def list_id_for_testing(c: Context) -> str:
    return read_list_id(c, "response")


@group.check(
    "list.id-for-syncs",
    "list",
    "Amplitude's syncs read the list id at the same path in the unwrapped reply.",
    origin="known",
)
def list_id_for_syncs(c: Context) -> str:
    return read_list_id(c)


@group.check(
    "list.create-again",
    "list",
    "A retry posts the same name again and returns the same list, not a second one.",
    origin="known",
)
def list_create_again(c: Context) -> None:
    trait = c.trait()
    ids = {create_list(c, trait) for _ in range(3)}
    if len(ids) > 1:
        raise Failed(f"the same name created several lists: {sorted(ids)}")
    other = create_list(c, c.trait())
    if other in ids:
        raise Failed(f"another name returned the same list {other!r}")


@group.check(
    "list.create-at-once",
    "list",
    "Four threads that create the same list at once get the same list.",
    origin="known",
)
def list_create_at_once(c: Context) -> None:
    for _ in range(5):
        call = (c.options.lists_path, payloads.list_create(c.trait()))
        ids = {list_id(expect(reply, 200).json()) for reply in c.post_at_once([call] * 4)}
        if len(ids) > 1:
            raise Failed(f"the same name created several lists: {sorted(map(str, ids))}")


@group.check(
    "list.add-and-remove",
    "list",
    "“Make subsequent calls to the add API and remove API to keep the list membership up to date.”",
)
def list_add_remove(c: Context) -> None:
    trait, users = c.trait(), c.users(20)
    found = create_list(c, trait)
    expect(c.post(list_path(c, found, "add"), payloads.list_users(users)), 200)
    c.expect_trait(trait, dict.fromkeys(users, True))
    expect(c.post(list_path(c, found, "remove"), payloads.list_users(users[:5])), 200)
    c.expect_trait(trait, dict.fromkeys(users[:5], False) | dict.fromkeys(users[5:], True))


@group.check(
    "list.repeat",
    "list",
    "“If a request fails, Amplitude retries”: repeated adds and removes return 200.",
)
def list_repeat(c: Context) -> None:
    trait, users = c.trait(), c.users(5)
    found = create_list(c, trait)
    for call, member in (("add", True), ("remove", False), ("add", True)):
        for _ in range(2):
            expect(c.post(list_path(c, found, call), payloads.list_users(users)), 200, label=call)
        c.expect_trait(trait, dict.fromkeys(users, member))


@group.check(
    "list.create-keeps-members",
    "list",
    "Repeating the list creation later keeps the members.",
    origin="known",
)
def list_create_keeps(c: Context) -> None:
    trait, users = c.trait(), c.users(3)
    expect(c.post(list_path(c, create_list(c, trait), "add"), payloads.list_users(users)), 200)
    create_list(c, trait)
    c.expect_trait(trait, dict.fromkeys(users, True))


@group.check("list.1000-users", "list", "“By default, batches have 1000 users.”")
def list_1000(c: Context) -> str:
    trait, users = c.trait(), c.users(1_000)
    path = list_path(c, create_list(c, trait), "add")
    reply = expect(c.post(path, payloads.list_users(users)), 200)
    c.expect_trait(trait, dict.fromkeys(users, True))
    return f"reply after {reply.seconds:.3f} s"


@group.check(
    "list.four-at-once",
    "list",
    "“By default, Amplitude uses 4 threads”: concurrent adds and removes of different users.",
)
def list_four(c: Context) -> None:
    trait, users = c.trait(), c.users(400)
    found = create_list(c, trait)
    expect(c.post(list_path(c, found, "add"), payloads.list_users(users[:200])), 200)
    calls = [
        (list_path(c, found, "remove"), payloads.list_users(users[:100])),
        (list_path(c, found, "remove"), payloads.list_users(users[100:200])),
        (list_path(c, found, "add"), payloads.list_users(users[200:300])),
        (list_path(c, found, "add"), payloads.list_users(users[300:])),
    ]
    for reply in c.post_at_once(calls):
        expect(reply, 200)
    c.expect_trait(trait, dict.fromkeys(users[:200], False) | dict.fromkeys(users[200:], True))


@group.check(
    "list.invalid",
    "list",
    "“400: Invalid request”: a list without a name, or users that are not a list.",
)
def list_invalid(c: Context) -> None:
    trait, users = c.trait(), c.users(2)
    lists: tuple[Any, ...] = ({}, {"name": ""}, {"name": 5}, [trait])
    for body in lists:
        expect(c.post(c.options.lists_path, body), 400, label=f"create {body!r}")
    path = list_path(c, create_list(c, trait), "add")
    adds: tuple[Any, ...] = ({}, {"userIds": users[0]})
    for body in adds:
        expect(c.post(path, body), 400, label=f"add {body!r}")
    for bad_id in ("", None):
        body = {"userIds": [bad_id]}
        expect(c.post(path, body), 400, 404, label=f"add {body!r}")
    expect(c.post(path, b"{"), 400, label="add '{'")
    c.expect_trait(trait, dict.fromkeys(users))


@group.check("list.unknown", "list", "An unknown list returns 404.", level="should", origin="known")
def list_unknown(c: Context) -> None:
    path = list_path(c, f"unknown-{c.users(1)[0]}", "add")
    expect(c.post(path, payloads.list_users(c.users(1))), 404)


@group.check(
    "list.no-users",
    "list",
    "An add without users returns 200 and changes nothing.",
    level="should",
    origin="known",
)
def list_no_users(c: Context) -> None:
    expect(c.post(list_path(c, create_list(c, c.trait()), "add"), payloads.list_users([])), 200)


@group.check(
    "list.user_ids",
    "list",
    "“userIds” in Amplitude's documentation; “user_ids” also occurs in practice.",
    level="should",
    origin="known",
)
def list_user_ids(c: Context) -> None:
    trait, users = c.trait(), c.users(2)
    path = list_path(c, create_list(c, trait), "add")
    expect(c.post(path, {"user_ids": users, "context": payloads.context()}), 200)
    c.expect_trait(trait, dict.fromkeys(users, True))


@group.check(
    "list.names",
    "list",
    "Cohort names may contain colons, quotes, backslashes, “<” and emoji.",
    origin="known",
)
def list_names(c: Context) -> None:
    for name in ("a: b/c?d", 'say "hi"', "back\\slash", "<b>", "日本語 🎉"):
        trait, [user] = c.trait(name), c.users(1)
        expect(c.post(list_path(c, create_list(c, trait), "add"), payloads.list_users([user])), 200)
        c.expect_trait(trait, {user: True})


@group.check(
    "list.bad-id",
    "list",
    "A user without a usable id doesn't keep the others from being added.",
    origin="known",
)
def list_bad_id(c: Context) -> None:
    trait, cases = c.trait(), users_around_bad_ids(c)
    path = list_path(c, create_list(c, trait), "add")
    for bad_id, users in cases:
        body = payloads.list_users(users)
        body["userIds"].insert(1, bad_id)
        expect(c.post(path, body), 200, label=f"id {bad_id!r} between two good ones")
        c.expect_trait(trait, dict.fromkeys(users, True))


@group.check(
    "list.only-bad-ids",
    "list",
    "“404: Invalid User ID”, if no user has a usable id.",
    level="should",
)
def list_only_bad_ids(c: Context) -> None:
    path = list_path(c, create_list(c, c.trait()), "add")
    expect(c.post(path, {"userIds": list(BAD_IDS), "context": payloads.context()}), 404)


@group.check(
    "list.numeric-ids",
    "list",
    "An item template without quotes around the user id sends a number.",
    level="should",
    origin="known",
)
def list_numbers(c: Context) -> None:
    trait, number = c.trait(), numeric_id(c)
    path = list_path(c, create_list(c, trait), "add")
    expect(c.post(path, {"userIds": [number], "context": payloads.context()}), 200)
    c.expect_trait(trait, {str(number): True})


def read_list_id(c: Context, wrapped_in: str = "") -> str:
    """Create a list, and read its id as Amplitude does, in the reply or in a wrapper around it."""
    trait, path = c.trait(), c.options.list_id_path
    reply = expect(c.post(c.options.lists_path, payloads.list_create(trait)), 200, label="create")
    document = {wrapped_in: reply.json()} if wrapped_in else reply.json()
    if (found := list_id_at(document, path)) is None:
        which = f"the reply, wrapped in {wrapped_in!r}" if wrapped_in else "the reply"
        raise Failed(f"no list id at {path!r} (--list-id-path) in {which}: {excerpt(reply.body)}")
    return f"list id {found!r}"
