"""What is sent: user ids, and one function for each way in that makes a body of them.

A new way in is one more :class:`Way` in ``WAYS``; the benchmark then measures it too.
"""

from __future__ import annotations

import json
import random
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from simulator import payloads

KEY = "benchmark-key"
COHORT_ID = "k3x9q2ab"
COHORT_NAME = "Frequent buyers"
TRAIT = payloads.trait_name(COHORT_NAME, COHORT_ID)

_AUTHORIZATION = b64encode(f"{KEY}:".encode()).decode()


class Way(NamedTuple):
    """One way in.

    Attributes:
        name: as the table calls it.
        path: where it is posted.
        body: makes the body for some user ids, all of them entering the cohort.
        setup: path and body of a call that must come first on an empty store; None where none.
    """

    name: str
    path: str
    body: Callable[[Sequence[str]], bytes]
    setup: tuple[str, bytes] | None = None


def identify(user_ids: Sequence[str], trait: str = TRAIT, member: bool = True) -> bytes:
    """One identify for one user, a batch of them for more, as Amplitude's document prints them."""
    if len(user_ids) == 1:
        return json.dumps(payloads.identify(user_ids[0], trait, member)).encode()
    # Encoding a template once and joining the ids into it takes a hundredth of the time.
    head, tail = json.dumps(payloads.identify("\0", trait, member)).split('"\\u0000"')
    items = f'"{tail}, {head}"'.join(user_ids)
    return f'{{"batch": [{head}"{items}"{tail}]}}'.encode()


IDENTIFY = Way("identify", payloads.COHORT_PATH, identify)


def list_users(user_ids: Sequence[str]) -> bytes:
    """Users for a list, as Amplitude's document prints them."""
    return json.dumps(payloads.list_users(user_ids)).encode()


LISTS = Way(
    "lists",
    f"{payloads.LISTS_PATH}/{COHORT_ID}/add",
    list_users,
    setup=(payloads.LISTS_PATH, json.dumps(payloads.list_create(TRAIT)).encode()),
)

_messages = random.Random(1)


def webhook(user_ids: Sequence[str]) -> bytes:
    """A Cohort Webhook with an id of its own, computed now."""
    body = payloads.webhook(
        COHORT_NAME,
        COHORT_ID,
        user_ids,
        True,
        computed_time=int(time.time()),
        message_id=payloads.message_id(_messages, True),
    )
    return json.dumps(body).encode()


WEBHOOKS = Way("webhooks", payloads.WEBHOOK_PATH, webhook)

# The first is compared with the afternoon version and the store; the others with the first.
WAYS = (IDENTIFY, LISTS, WEBHOOKS)


def user_ids(count: int, start: int = 0) -> Iterator[str]:
    """Ids of 24 bytes, all different, in an order that is not their own."""
    return (f"user-{n * 0x9E3779B97F4A7C15 % 10**19:019d}" for n in range(start, start + count))


def request(path: str, body: bytes) -> bytes:
    """The whole request as it goes over the wire."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\n"
        f"Authorization: Basic {_AUTHORIZATION}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def requests(way: Way, batch: int, count: int) -> list[bytes]:
    """``count`` requests of ``batch`` new users each."""
    ids = user_ids(batch * count)
    return [request(way.path, way.body(list(islice(ids, batch)))) for _ in range(count)]
