"""A store with a past: some weeks of syncs, and of what goes wrong in them.

The requests are real. What is made up is when they were sent: after each round, what the service
has noted of it is moved into the past.
"""

from __future__ import annotations

import struct
import time

import redis

from simulator import payloads
from tests.support.polling import wait_until
from tests.support.service import APP, Service

BASE = f"cohorts:{{{APP}}}:"
HOUR = 3600
ROUNDS = 9

# Name, id, users in all, hours from sync to sync, and by how much a round changes it.
COHORTS = (
    ("Power users", "a7k2mq", 4200, 24, 0.06),
    ("Trial about to end", "t3x9pd", 310, 12, 0.9),
    ("Newsletter readers", "n5w8rb", 7600, 24, 0.02),
    ("Churn risk", "c1h4zs", 900, 24, 0.35),
    ("Bought twice", "b6u2ye", 1480, 24, 0.04),
    ("Uses the mobile app", "m9f3kt", 5300, 6, 0.01),
    ("Big spenders", "s4p7nv", 240, 168, 0.12),
)
LATE = "c1h4zs"
# What goes wrong goes wrong in the latest sync of this one.
IN_TROUBLE = "a7k2mq"
# A user who is in all of them.
EVERYWHERE = "ann.lee@example.com"


def fill(service: Service, client: redis.Redis, rounds: int = ROUNDS) -> None:
    """Send some weeks of syncs, ``rounds`` of each cohort."""
    sizes: dict[str, list[tuple[int, int]]] = {cohort[1]: [] for cohort in COHORTS}
    now = time.time()
    for number in range(rounds):
        for cohort in COHORTS:
            _send_round(service, cohort, number)
        _wait_for_all_requests(client)
        for sync_id in set(client.zrange(f"{BASE}syncs", 0, -1)):
            key = f"{BASE}sync:{sync_id}"
            cohort_id = client.hget(key, "cohort")
            hours = next(c[3] for c in COHORTS if c[1] == cohort_id)
            is_new = client.hget(key, "moved") is None
            if is_new:
                ago = (rounds - 1 - number) * hours * HOUR + 17 * 60
                if cohort_id == LATE:
                    ago += 3 * 24 * HOUR
                _move(client, key, ago)
                members = f"{BASE}cohort:{cohort_id}:members"
                _move_members(client, members, now * 1000, ago * 1000)
                sizes[cohort_id].append((int(now - ago), client.zcard(members)))
        client.delete(f"{BASE}open")
    _trouble(service, client)
    members = client.zcard(f"{BASE}cohort:{IN_TROUBLE}:members")
    sizes[IN_TROUBLE].append((int(time.time()), members))
    for _, cohort_id, _, hours, _ in COHORTS:
        packed = b"".join(struct.pack(">II", at, members) for at, members in sizes[cohort_id])
        client.set(f"{BASE}cohort:{cohort_id}:sizes", packed)
        first, last = (sizes[cohort_id][n][0] * 1000 for n in (0, -1))
        client.hset(f"{BASE}cohort:{cohort_id}:state", "first", first)
        cadence = hours * HOUR * 1000
        late_after = last + cadence * 3 // 2
        client.hset(
            f"{BASE}cohort:{cohort_id}:freshness",
            mapping={
                "last_received": last,
                "cadence": cadence,
                "cadence_source": "learned",
                "late_after": late_after,
            },
        )
        client.zadd(f"{BASE}due", {cohort_id: late_after})


def _send_round(service: Service, cohort: tuple[str, str, int, int, float], number: int) -> None:
    name, cohort_id, total, _, change = cohort
    trait = f"[Amplitude] {name}: {cohort_id}"
    users = [f"{name.split()[0].lower()}-{n:05}@example.com" for n in range(int(total * 1.8))]
    moved = max(3, int(total * change))
    start = int(number * moved * (1.0 + 0.4 * (number % 3)))
    there = [EVERYWHERE, *users[start : start + total + (number * 37) % (moved + 1)]]
    gone = users[max(0, start - moved) : start]
    for first in range(0, len(there), 1000):
        assert service.post(payloads.batch(there[first : first + 1000], trait, True)).status == 200
    if gone:
        assert service.post(payloads.batch(gone, trait, False)).status == 200


def _wait_for_all_requests(client: redis.Redis) -> None:
    """Wait until the sums no longer grow: each worker adds what it noted once a second."""

    def total() -> int:
        return sum(
            int(client.hget(f"{BASE}sync:{sync_id}", "requests") or 0)
            for sync_id in client.zrange(f"{BASE}syncs", 0, -1)
        )

    seen, since = total(), time.monotonic()

    def steady() -> bool:
        nonlocal seen, since
        if total() != seen:
            seen, since = total(), time.monotonic()
        return seen > 0 and time.monotonic() - since > 1.3

    wait_until(steady, 120)


def _move(client: redis.Redis, key: str, seconds: float) -> None:
    """Move a sync into the past."""
    began = int(client.hget(key, "began") or 0) - int(seconds * 1000)
    took = 1000 * (11 + hash(key) % 60)
    client.hset(key, mapping={"began": began, "last": began + took, "moved": 1})


def _move_members(client: redis.Redis, key: str, since_ms: float, by_ms: float) -> None:
    """Move who entered in a round into the past."""
    entered = client.zrange(key, since_ms, "+inf", byscore=True, withscores=True)
    if entered:
        client.zadd(key, {user: score - by_ms for user, score in entered})


def _trouble(service: Service, client: redis.Redis) -> None:
    """What goes wrong: unreadable bodies, a user who was erased for good, a wrong key."""
    client.sadd(f"{BASE}suppressed", "erased-1@example.com", "erased-2@example.com")
    trait = f"[Amplitude] Power users: {IN_TROUBLE}"
    users = ["erased-1@example.com", "erased-2@example.com", *payloads.user_ids(300)]
    assert service.post(payloads.batch(users, trait, True)).status == 200
    for _ in range(3):
        assert service.post(b'{"cohort_name": "Spring "sale""}').status == 400
    for _ in range(14):
        assert service.post(payloads.identify("u", trait, True), api_key="old-key").status == 401
    assert service.post({"name": "[Amplitude] Spring sale: w8d5hx"}, "/lists").status == 200
    _wait_for_all_requests(client)
