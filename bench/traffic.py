"""What is sent: user ids, and one function for each way in that makes a body of them.

A new way in is one more :class:`Way` in ``WAYS``; the benchmark then measures it too.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

KEY = "benchmark-key"
COHORT_ID = "k3x9q2ab"
TRAIT = f"[Amplitude] Frequent buyers: {COHORT_ID}"
CONTEXT = {"integration": {"name": "Amplitude Cohort Sync", "version": "1.0.0"}}

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


def identify(user_ids: Sequence[str]) -> bytes:
    """One identify for one user, a batch of them for more, as Amplitude's document prints them."""
    if len(user_ids) == 1:
        return json.dumps(_identify(user_ids[0])).encode()
    # Encoding a template once and joining the ids into it takes a hundredth of the time.
    head, tail = json.dumps(_identify("\0")).split('"\\u0000"')
    items = f'"{tail}, {head}"'.join(user_ids)
    return f'{{"batch": [{head}"{items}"{tail}]}}'.encode()


def _identify(user_id: str) -> dict[str, Any]:
    return {"type": "identify", "traits": {TRAIT: True}, "userId": user_id, "context": CONTEXT}


IDENTIFY = Way("identify", "/api/v1/integration/amplitude/cohort", identify)


def list_users(user_ids: Sequence[str]) -> bytes:
    """Users for a list, as Amplitude's document prints them."""
    return json.dumps({"userIds": list(user_ids), "context": CONTEXT}).encode()


LISTS = Way(
    "lists",
    f"/lists/{COHORT_ID}/add",
    list_users,
    setup=("/lists", json.dumps({"name": TRAIT, "context": CONTEXT}).encode()),
)

# The first is compared with the afternoon version and the store; the others with the first.
WAYS = (IDENTIFY, LISTS)


def user_ids(count: int) -> Iterator[str]:
    """Ids of 24 bytes, all different, in an order that is not their own."""
    return (f"user-{n * 0x9E3779B97F4A7C15 % 10**19:019d}" for n in range(count))


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
