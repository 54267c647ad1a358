"""Bad connections."""

from __future__ import annotations

import threading
import time

from ... import payloads
from ...connection import Reply
from ...encode import to_json
from ..context import Context, Failed, expect
from .group import CheckGroup

group = CheckGroup()


@group.check(
    "network.cut-body",
    "property",
    "A connection that breaks half way through the body has no effect, and doesn't affect "
    "later requests.",
    origin="known",
)
def network_cut(c: Context) -> None:
    trait, users = c.trait(), c.users(500)
    body = payloads.batch(users, trait, True)
    with c.connection() as connection:
        for _ in range(3):
            connection.post_truncated(c.options.path, to_json(body))
        expect(c.identify(payloads.identify(users[0], trait, False)), 200, label="the next request")
    # The receiver may still be processing the half bodies.
    time.sleep(0.3 if c.reader is not None else 0)
    c.expect_trait(trait, {users[0]: False} | dict.fromkeys(users[1:]))
    expect(c.identify(body), 200, label="the retry")
    c.expect_trait(trait, dict.fromkeys(users, True))


@group.check(
    "network.slow-body",
    "property",
    "Slow connections don't block others: eight slow bodies and a quick request at the same time.",
    level="should",
    origin="known",
)
def network_slow(c: Context) -> str:
    trait, users, quick = c.trait(), c.users(8), c.users(1)
    replies: list[Reply] = []

    def slow(user: str) -> None:
        with c.connection() as connection:
            body = to_json(payloads.identify(user, trait, True))
            replies.append(
                c.retry_throttled(lambda: connection.post_slowly(c.options.path, body, 1.2))
            )

    threads = [threading.Thread(target=slow, args=(user,), daemon=True) for user in users]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    reply = expect(c.identify(payloads.identify(quick[0], trait, True)), 200)
    for thread in threads:
        thread.join()
    for slow_reply in replies:
        expect(slow_reply, 200, label="a slow body")
    if reply.seconds > 0.5:
        raise Failed(f"the quick request took {reply.seconds:.2f} s")
    c.expect_trait(trait, dict.fromkeys([*users, *quick], True))
    return f"the quick request took {reply.seconds:.3f} s"
