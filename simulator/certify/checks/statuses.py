"""Statuses that need a fact about the receiver: 404 for a user id, and 429."""

from __future__ import annotations

import time

from ... import payloads
from ..context import Context, Failed, Skipped, expect
from .group import CheckGroup

group = CheckGroup()


@group.check("status.404", "property", "“404: Invalid User ID”.")
def status_404(c: Context) -> None:
    if c.options.invalid_user is None:
        raise Skipped("needs --invalid-user ID, a user id that the receiver answers with 404")
    body = payloads.identify(c.options.invalid_user, c.trait(), True)
    expect(c.identify(body), 404)


@group.check(
    "status.429",
    "property",
    "“429: Throttling/rate limiting”; later requests are accepted again.",
)
def status_429(c: Context) -> str:
    if c.options.throttle is None:
        raise Skipped("needs --throttle N, a number of requests that the receiver throttles")
    trait = c.trait()
    calls = [
        (c.options.path, payloads.identify(user, trait, True))
        for user in c.users(c.options.throttle)
    ]
    statuses = []
    for start in range(0, len(calls), 50):
        replies = c.post_at_once(calls[start : start + 50], retry_throttled=False)
        statuses += [expect(reply, 200, 429).status for reply in replies]
    throttled = statuses.count(429)
    if not throttled:
        raise Failed(f"none of {len(calls)} requests returned 429")
    deadline = time.monotonic() + 65
    while (reply := c.identify(calls[0][1])).status == 429 and time.monotonic() < deadline:
        pass  # `identify` waits between attempts
    expect(reply, 200, label="after the burst")
    return f"{throttled} of {len(calls)} requests returned 429"
