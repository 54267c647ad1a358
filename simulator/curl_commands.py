"""Amplitude's documented mock payloads as `curl` commands to copy and paste."""

from __future__ import annotations

import json
import random
import shlex
import time
from collections.abc import Iterator
from dataclasses import replace

from . import payloads
from .connection import WEBHOOK_USER_AGENT, Target


def curl_commands(
    target: Target,
    *,
    cohort_name: str = "cohort name",
    cohort_id: str = "123",
    user_id: str = "test.user@email.com",
    paths: tuple[str, str, str] = (
        payloads.COHORT_PATH,
        payloads.LISTS_PATH,
        payloads.WEBHOOK_PATH,
    ),
) -> Iterator[tuple[str, str]]:
    """Yield (description, command) pairs. `paths` are those of identify, lists and webhook.

    The first is Amplitude's documented test request, changed only in address and key.
    """
    identify_path, lists_path, webhook_path = paths
    trait = payloads.trait_name(cohort_name, cohort_id)
    users = [user_id, f"other.{user_id}"]
    test = {"traits": {f"{cohort_name}:{cohort_id}": True}, "type": "identify", "userId": user_id}
    # The documented placeholder app id goes with its placeholder key, not with a real one.
    app_id = target.app_id or (None if target.key else "TEST_APP_ID")
    with_headers = replace(target, auth="headers", app_id=app_id)
    yield "Amplitude's documented test request", curl(with_headers, identify_path, test)
    for member, verb in ((True, "enters"), (False, "leaves")):
        body = payloads.identify(user_id, trait, member)
        yield f"single update: a user {verb}", curl(target, identify_path, body)
    for member, verb in ((True, "enter"), (False, "leave")):
        body = payloads.batch(users, trait, member)
        yield f"batch update: two users {verb}", curl(target, identify_path, body)
    body = payloads.list_create(trait)
    yield "list creation; set LIST_ID to the id in the reply", curl(target, lists_path, body)
    for call, description in (("add", "users enter the list"), ("remove", "users leave the list")):
        path = f"{lists_path}/$LIST_ID/{call}"
        yield description, curl(target, path, payloads.list_users(users))
    # Amplitude's documentation prints this URL for both updates.
    document_path = f"{lists_path}/$LIST_ID/remove"
    body = payloads.identify(user_id, trait, True)
    yield "single update at the documented URL", curl(target, document_path, body)
    body = payloads.batch(users, trait, True)
    yield "batch update at the documented URL", curl(target, document_path, body)
    for member, verb in ((True, "enter"), (False, "leave")):
        body = payloads.webhook(
            cohort_name,
            cohort_id,
            users,
            member,
            computed_time=int(time.time()),
            message_id=payloads.message_id(random.Random(), member),
        )
        command = curl(target, webhook_path, body, WEBHOOK_USER_AGENT)
        yield f"cohort webhook: users {verb}", command


def curl(target: Target, path: str, body: object, user_agent: str | None = None) -> str:
    """Return one call as a `curl` command. A POSIX shell expands `$LIST_ID` in `path`."""
    url = target.url.rstrip("/") + path
    words = ["curl", "--request", "POST", _quote_url(url)]
    headers = target.headers()
    del headers["User-Agent"]  # curl sends its own
    if target.key is not None and target.auth == "basic":
        words += ["--user", shlex.quote(f"{target.key}:")]
        del headers["Authorization"]
    if user_agent:
        words += ["--user-agent", shlex.quote(user_agent)]
    for name, value in headers.items():
        words += ["--header", shlex.quote(f"{name}: {value}")]
    words += ["--data-raw", shlex.quote(json.dumps(body, ensure_ascii=False, indent=2))]
    return " ".join(words)


def _quote_url(url: str) -> str:
    before, variable, after = url.partition("$LIST_ID")
    return f'{shlex.quote(before)}"$LIST_ID"{shlex.quote(after)}' if variable else shlex.quote(url)
