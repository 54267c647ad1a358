"""What a downstream reader sees in the store, in a form that can be compared."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import redis


class Transition(NamedTuple):
    """One user who entered or left one cohort, as the change stream tells it."""

    cohort: str
    change: str
    user: str


def traits(client: redis.Redis, app: str) -> dict[str, dict[str, str]]:
    """Every user's hash: user id → trait name → 'true' or 'false'."""
    found = {}
    for key in client.scan_iter(match=f"cohorts:{{{app}*:user:*"):
        found[key.split(":user:", 1)[1]] = client.hgetall(key)
    return found


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
    found: dict[str, Any] = {}
    for key in client.scan_iter(match="cohorts:*"):
        if ":user:" in key:
            found[key] = client.hgetall(key)
        elif key.endswith(":members"):
            found[key] = client.zrange(key, 0, -1, withscores=True)
        elif key.endswith(":changes"):
            found[key] = client.xrange(key)
    return found
