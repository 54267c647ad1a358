"""Calls to a receiver that several checks make."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from ... import payloads, replies
from ...connection import Reply
from ..context import Context, Failed, expect

# What stands in the place of the user id if a user has none.
BAD_IDS = ("", None)


def users_around_bad_ids(c: Context) -> list[tuple[str | None, list[str]]]:
    """Return each bad id with two good ones that no other check uses."""
    return [(bad_id, c.users(2)) for bad_id in BAD_IDS]


def numeric_id(c: Context) -> int:
    """Draw a whole number as user id."""
    return int(c.users(1)[0][:12], 16)


def create_list(c: Context, trait: str) -> str:
    """Create a list and return its id."""
    reply = expect(c.post(c.options.lists_path, payloads.list_create(trait)), 200, label="create")
    found = replies.list_id(reply.json())
    if found is None:
        raise Failed(f"no list id in the reply to the list creation: {replies.excerpt(reply.body)}")
    return found


def list_path(c: Context, list_id: str, call: str) -> str:
    """Return the path of a list's `add` or `remove` call."""
    return f"{c.options.lists_path.rstrip('/')}/{quote(list_id, safe='')}/{call}"


def webhook_body(
    c: Context,
    cohort: tuple[str, str],
    users: Sequence[str],
    member: bool,
    computed_time: int | None = None,
) -> dict[str, Any]:
    """Return the body of a webhook; `computed_time` defaults to now."""
    return payloads.webhook(
        *cohort,
        users,
        member,
        computed_time=int(time.time()) if computed_time is None else computed_time,
        message_id=c.message_id(member),
    )


def time_batches(c: Context, send: Callable[[Sequence[str]], Reply], limit: float) -> str:
    """Send five batches of 1,000 users. Fail if a reply takes longer than `limit` seconds."""
    slowest = 0.0
    for _ in range(5):
        slowest = max(slowest, expect(send(c.users(1_000)), 200).seconds)
        if slowest > limit:
            raise Failed(f"a batch of 1,000 users took {slowest:.2f} s")
    return f"slowest of 5 batches of 1,000 users: {slowest:.3f} s"
