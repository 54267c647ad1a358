"""Build the request bodies that Amplitude sends, as plain dicts.

The shapes are those of Amplitude's page "Receiving Behavioral Cohorts" (identify, batch, lists) and
of the default body of its Cohort Webhooks destination. Every call returns a new object that the
caller may change.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterable
from typing import Any

Payload = dict[str, Any]

PREFIX = "[Amplitude] "
COHORT_PATH = "/api/v1/integration/amplitude/cohort"
WEBHOOK_PATH = "/api/v1/integration/amplitude/webhook"
LISTS_PATH = "/lists"

CONTEXT: Payload = {"integration": {"name": "Amplitude Cohort Sync", "version": "1.0.0"}}
"""The `context` that Amplitude's documentation shows in every body. The builders copy it."""


def context() -> Payload:
    """Return a copy of `CONTEXT`."""
    return {"integration": dict(CONTEXT["integration"])}


def trait_name(name: str, cohort_id: str) -> str:
    """Return the trait that stands for a cohort: `[Amplitude] {name}: {cohort_id}`."""
    return f"{PREFIX}{name}: {cohort_id}"


def identify(user_id: str, trait: str, member: bool, **extra: Any) -> Payload:
    """Return a single update: `{"type", "traits": {trait: member}, "userId", "context", …}`."""
    return {
        "type": "identify",
        "traits": {trait: member},
        "userId": user_id,
        "context": context(),
        **extra,
    }


def batch(user_ids: Iterable[str], trait: str, member: bool) -> Payload:
    """Return a batch update: `{"batch": [identify, …]}`, one identify for each user."""
    return {"batch": [identify(user_id, trait, member) for user_id in user_ids]}


def list_create(name: str) -> Payload:
    """Return the body of a list creation; `name` is the whole trait name (see `trait_name`)."""
    return {"name": name, "context": context()}


def list_users(user_ids: Iterable[str]) -> Payload:
    """Return the body of a list's add and remove calls: `{"userIds": […], "context"}`."""
    return {"userIds": list(user_ids), "context": context()}


def webhook(
    cohort_name: str,
    cohort_id: str,
    user_ids: Iterable[str],
    in_cohort: bool,
    *,
    computed_time: int | str,
    message_id: str,
) -> Payload:
    """Return the default body of a Cohort Webhook.

    `computed_time` is in seconds since the epoch and travels as a string; `message_id` is
    `<uuid>::enter::<n>` or `<uuid>::exit::<n>` (see `message_id`) and stays the same on a retry.
    """
    return {
        "cohort_name": cohort_name,
        "cohort_id": cohort_id,
        "in_cohort": in_cohort,
        "computed_time": str(computed_time),
        "message_id": message_id,
        "users": [{"user_id": user_id} for user_id in user_ids],
    }


def count_users(body: Any) -> int:
    """Return how many users a body of any of these shapes names, at least 1."""
    if isinstance(body, dict):
        for name in ("batch", "userIds", "user_ids", "users"):
            if isinstance(body.get(name), list):
                return max(len(body[name]), 1)
    return 1


def message_id(rng: random.Random, in_cohort: bool, number: int = 0) -> str:
    """Return a webhook's message id, `<uuid>::enter::<number>`, with a uuid drawn from `rng`.

    For users who leave it has `exit`, which is an assumption: Amplitude doesn't document it.
    """
    drawn = uuid.UUID(int=rng.getrandbits(128), version=4)
    return f"{drawn}::{'enter' if in_cohort else 'exit'}::{number}"


def user_ids(n: int, seed: int = 0) -> list[str]:
    """Return `n` synthetic user ids of 24 bytes, the same for the same `seed`.

    A longer list begins with the ids of a shorter one. Different seeds give different ids.
    """
    bits = random.Random(f"user ids {seed}").getrandbits
    return [f"{bits(96):024x}" for _ in range(n)]
