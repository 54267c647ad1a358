"""What a downstream reader sees in the store, in a form that can be compared."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

import redis

# Keys read in one round trip.
_AT_ONCE = 1000


class Transition(NamedTuple):
    """One user who entered or left one cohort, as the change stream tells it."""

    cohort: str
    change: str
    user: str


def traits(client: redis.Redis, app: str) -> dict[str, dict[str, str]]:
    """Every user's hash: user id → trait name → 'true' or 'false'."""
    keys = client.scan_iter(match=f"cohorts:{{{app}*:user:*", count=_AT_ONCE)
    return {key.split(":user:", 1)[1]: found for key, found in _values(client, keys).items()}


def members(client: redis.Redis, app: str) -> dict[str, set[str]]:
    """Every cohort's members."""
    found: dict[str, set[str]] = {}
    for key in client.scan_iter(match=f"cohorts:{{{app}*:cohort:*:members"):
        cohort = key.split(":cohort:", 1)[1].removesuffix(":members")
        found.setdefault(cohort, set()).update(client.zrange(key, 0, -1))
    return found


def transitions(client: redis.Redis, app: str) -> list[Transition]:
    """Everything in the change streams; in order within each partition."""
    found = []
    for key in sorted(client.scan_iter(match=f"cohorts:{{{app}*:changes")):
        for _, entry in client.xrange(key):
            found += [
                Transition(entry["cohort"], entry["change"], user)
                for user in json.loads(entry["users"])
            ]
    return found


def contents(client: redis.Redis) -> dict[str, Any]:
    """Every key of the contract with its value, times left out: what a repeat may not change."""
    return _values(client, client.scan_iter(match="cohorts:*", count=_AT_ONCE))


def _values(client: redis.Redis, keys: Iterable[str]) -> dict[str, Any]:
    """The values of those keys that belong to the contract."""
    found: dict[str, Any] = {}
    waiting = iter(keys)
    while some := list(islice(waiting, _AT_ONCE)):
        known = [key for key in some if ":user:" in key or key.endswith((":members", ":changes"))]
        with client.pipeline(transaction=False) as pipeline:
            for key in known:
                if ":user:" in key:
                    pipeline.hgetall(key)
                elif key.endswith(":members"):
                    pipeline.zrange(key, 0, -1, withscores=True)
                else:
                    pipeline.xrange(key)
            found.update(zip(known, pipeline.execute(), strict=True))
    return found
