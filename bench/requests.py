"""The requests that loads consist of, as bytes on the wire.

Each public function's last positional argument is the :class:`Target`, so that loads are declared
as ``partial(batches, 1000)`` and can be sent to another process.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice, repeat
from urllib.parse import urlencode

from bench.generator import Address, LoadFailed
from simulator import payloads

APP = "bench"
# Ingest, everything, and the two apps of the fairness loads.
KEY, ADMIN_KEY, QUIET_KEY, NOISY_KEY = "bench-key", "bench-admin", "quiet-key", "noisy-key"
COHORT_ID = "k3x9q2ab"
COHORT_NAME = "Frequent buyers"
TRAIT = payloads.trait_name(COHORT_NAME, COHORT_ID)
# Every user that is read is in these.
READ_TRAITS = tuple(payloads.trait_name(f"Cohort {name}", f"c0h0rt{name}") for name in "abc")
_DASHBOARD_USERS = 1000


@dataclass(frozen=True)
class Size:
    """How large a run is.

    Attributes:
        seconds: how long requests are started in each load.
        rounds: how often each load runs.
        users: users that are read, and those whose memory is measured.
        members: of the cohort that is exported, and renamed.
        cohorts: that the dashboard shows; its history has ten requests for each.
        grown: members of the cohort that grows.
    """

    seconds: float
    rounds: int
    users: int
    members: int
    cohorts: int
    grown: int


@dataclass(frozen=True)
class Target:
    """Where requests go, how large the run is, and the first user nobody has mentioned yet."""

    address: Address
    size: Size
    start: int = 0


def request(method: str, path: str, body: bytes = b"", key: str = KEY) -> bytes:
    """A whole request."""
    authorization = b64encode(f"{key}:".encode()).decode()
    length = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    return (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\n"
        f"Authorization: Basic {authorization}\r\n{length}\r\n"
    ).encode() + body


def user_ids(number: int, start: int = 0) -> Iterator[str]:
    """Distinct ids of 24 bytes, not in sorted order."""
    return (f"user-{n * 0x9E3779B97F4A7C15 % 10**19:019d}" for n in range(start, start + number))


def identify(users: Sequence[str], traits: Sequence[str] = (TRAIT,), member: bool = True) -> bytes:
    """The body of one identify for one user, of a batch for several, as Amplitude documents it."""
    item = payloads.identify("\0", traits[0], member)
    item["traits"] = dict.fromkeys(traits, member)
    if len(users) == 1:
        return json.dumps({**item, "userId": users[0]}).encode()
    # To encode a template once and join the ids into it takes a hundredth of the time.
    head, tail = json.dumps(item).split('"\\u0000"')
    items = f'"{tail}, {head}"'.join(users)
    return f'{{"batch": [{head}"{items}"{tail}]}}'.encode()


def batches(
    batch: int,
    target: Target,
    *,
    first: int = 0,
    key: str = KEY,
    traits: Sequence[str] = (TRAIT,),
    member: bool = True,
    limit: int = 1 << 62,
) -> Iterator[bytes]:
    """Requests of ``batch`` users who enter a cohort, or leave it, other users each time."""
    ids = user_ids(limit, target.start + first)
    while users := list(islice(ids, batch)):
        yield request("POST", payloads.COHORT_PATH, identify(users, traits, member), key)


def sync(target: Target) -> Iterator[bytes]:
    """A full sync of ``size.users``."""
    return batches(1000, target, limit=target.size.users)


def twice(target: Target) -> Iterator[bytes]:
    """The same full sync, and then again."""
    return chain(sync(target), sync(target))


def lists(batch: int, target: Target) -> Iterator[bytes]:
    """The same as :func:`batches`, to a list."""
    path = f"{payloads.LISTS_PATH}/{COHORT_ID}/add"
    ids = user_ids(1 << 62, target.start)
    while True:
        body = json.dumps(payloads.list_users(list(islice(ids, batch)))).encode()
        yield request("POST", path, body)


def list_creation(target: Target) -> Iterator[bytes]:
    """Creates the list."""
    yield request("POST", payloads.LISTS_PATH, json.dumps(payloads.list_create(TRAIT)).encode())


def webhooks(batch: int, target: Target) -> Iterator[bytes]:
    """The same as :func:`batches`, as Cohort Webhooks."""
    ids, rng = user_ids(1 << 62, target.start), random.Random(target.start)
    while True:
        body = payloads.webhook(
            COHORT_NAME,
            COHORT_ID,
            list(islice(ids, batch)),
            True,
            computed_time=int(time.time()),
            message_id=payloads.message_id(rng, True),
        )
        yield request("POST", payloads.WEBHOOK_PATH, json.dumps(body).encode())


def read_data(target: Target) -> Iterator[bytes]:
    """What is read: ``size.users`` in three cohorts each, and a cohort of ``size.members``."""
    size = target.size
    yield from batches(1000, target, traits=READ_TRAITS, limit=size.users)
    yield from batches(1000, target, first=size.users, limit=size.members)


def reads(target: Target) -> Iterator[bytes]:
    """One user of :func:`read_data` at a time."""
    users = random.Random(1).choices(list(user_ids(target.size.users)), k=10_000)
    return cycle([request("GET", f"/api/v1/users/{user}", key=ADMIN_KEY) for user in users])


def bulk_reads(number: int, target: Target) -> Iterator[bytes]:
    """``number`` users of :func:`read_data` in one request."""
    users, rng = list(user_ids(target.size.users)), random.Random(2)
    while True:
        body = json.dumps({"userIds": rng.sample(users, number)}).encode()
        yield request("POST", "/api/v1/users/query", body, ADMIN_KEY)


def gets(path: str, target: Target, *, key: str = ADMIN_KEY) -> Iterator[bytes]:
    """The same GET again and again."""
    return repeat(request("GET", path, key=key))


def page_data(target: Target) -> Iterator[bytes]:
    """What the dashboard shows: ``size.cohorts``, each with ten requests, some with a problem."""
    rng = random.Random(1)
    yield request("DELETE", "/api/v1/users/suppressed?suppress=true", key=ADMIN_KEY)
    for number in range(10 * target.size.cohorts):
        cohort = number % target.size.cohorts
        users = [f"u{rng.randrange(_DASHBOARD_USERS)}"]
        if rng.random() < 0.02:
            users.append("suppressed")
        traits = [payloads.trait_name(f"Cohort {cohort * 7919 % 10_007}", f"c{cohort:05}")]
        yield request("POST", payloads.COHORT_PATH, identify(users, traits))


def pages(path: str, follow: str, target: Target) -> Iterator[bytes]:
    """A page of the dashboard, or the one that its first link matching ``follow`` leads to."""
    cookie = _log_in(target.address)
    if follow:
        found = re.search(follow, _get_page(target.address, path, cookie))
        if not found:
            raise LoadFailed(f"{path} has no link {follow}")
        path = found[1].replace("&amp;", "&")
    return repeat(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {cookie}\r\n\r\n".encode())


def _log_in(address: Address) -> str:
    connection = http.client.HTTPConnection(*address, timeout=60)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/login", urlencode({"key": ADMIN_KEY}), form)
    reply = connection.getresponse()
    connection.close()
    return (reply.headers["Set-Cookie"] or "").partition(";")[0]


def _get_page(address: Address, path: str, cookie: str) -> str:
    connection = http.client.HTTPConnection(*address, timeout=60)
    connection.request("GET", path, headers={"Cookie": cookie})
    reply = connection.getresponse()
    page = reply.read().decode()
    connection.close()
    if reply.status != 200:
        raise LoadFailed(f"GET {path}: {reply.status}")
    return page
