"""The targets: functions that take bytes and fail if an invariant is violated.

Nothing here needs the fuzzer, so that the test suite can run the corpus without it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import cache

import orjson
from flask import Flask
from marshmallow import Schema, ValidationError

from app import create_app
from app.cohorts import Cohort, Identify, membership_changes
from app.cohorts.cohort import MAX_TRAIT_BYTES, MAX_USER_ID_BYTES, text_problem
from app.errors import Problem
from app.settings import ApiKey, Settings
from app.web.api.schemas import UsersQuery
from app.web.http.body import decoded, load, read_text
from app.web.http.fields import limited
from app.web.ingest.identify_batch import accept_batch
from app.web.ingest.identify_schema import BatchSchema, IdentifySchema, accept
from app.web.ingest.list_schema import ListSchema, ListUsersSchema
from app.web.ingest.segment_schema import (
    SegmentBatch,
    SegmentBatchSchema,
    SegmentCall,
    SegmentIdentifySchema,
)
from app.web.ingest.webhook_schema import Webhook, WebhookSchema

MOST_USERS = 5
SCHEMAS: tuple[Schema, ...] = (
    IdentifySchema(),
    limited(BatchSchema, MOST_USERS),
    ListSchema(),
    limited(ListUsersSchema, MOST_USERS),
    limited(WebhookSchema, MOST_USERS),
    SegmentIdentifySchema(),
    limited(SegmentBatchSchema, MOST_USERS),
    limited(UsersQuery, MOST_USERS),
)
ENCODINGS = ("identity", "gzip", "deflate", "")
TYPES = (
    "application/json",
    "application/json; charset=utf-8",
    "application/cloudevents+json",
    "text/plain",
)


@cache
def service() -> Flask:
    """The service; its store is never used."""
    settings = Settings(
        redis_url="unix:///nowhere", api_keys=(ApiKey("a", "k"),), max_body_bytes=1 << 16
    )
    return create_app(settings)


def body(data: bytes) -> None:
    """A request body: the first two bytes choose the headers and the schema.

    The result must be a value that fits the schema, or a problem that can be sent as a reply.
    """
    if len(data) < 2:
        return
    headers, which, sent = data[0], data[1], data[2:]
    context = service().test_request_context(
        "/",
        method="POST",
        input_stream=io.BytesIO(sent),
        content_length=len(sent) + (headers >> 4 == 15),  # sometimes cut off
        content_type=TYPES[headers & 3],
        headers={"Content-Encoding": ENCODINGS[headers >> 2 & 3]},
    )
    with context:
        calls = None
        try:
            text = read_text()
            calls = accept_batch(text, MOST_USERS)
            value = decoded(text)
        except Problem as problem:
            # accept_batch decodes only the last value of a duplicate key. An earlier one may be
            # nested deeper, or be a larger number, than orjson accepts.
            assert calls is None or has_duplicate_key(text)
            check_problem(problem)
            return
        try:
            loaded = load(SCHEMAS[which % len(SCHEMAS)], value)
        except Problem as problem:
            check_problem(problem)
        else:
            check_loaded(loaded)
        check_agreement(value)
        if calls is not None:
            assert list(calls) == SCHEMAS[1].load(value)["batch"]


def has_duplicate_key(text: bytes) -> bool:
    """Whether an object in valid JSON has a duplicate key, or is nested too deep for Python."""
    duplicate = False

    def check(pairs: list[tuple[str, object]]) -> None:
        nonlocal duplicate
        duplicate |= len(dict(pairs)) < len(pairs)

    try:
        json.loads(text, object_pairs_hook=check)
    except RecursionError:
        return True
    return duplicate


def trait(data: bytes) -> None:
    """A trait name. Bytes that are not UTF-8 become lone surrogates, which JSON may contain."""
    name = data.decode("utf-8", "surrogateescape")
    if text_problem(name, MAX_TRAIT_BYTES):
        return
    check_trait(name)


def check_problem(problem: Problem) -> None:
    assert 400 <= problem.status < 500
    sent = orjson.dumps({"detail": problem.detail, "errors": problem.errors})
    assert len(problem.errors or ()) <= 50
    assert problem.detail or problem.errors
    sent.decode()


def check_loaded(loaded: object) -> None:
    calls: list[Identify] = []
    if isinstance(loaded, Identify):
        calls = [loaded]
    elif isinstance(loaded, SegmentCall):
        calls = [loaded.identify] if loaded.identify else []
    elif isinstance(loaded, SegmentBatch):
        calls = list(loaded.identifies.values())
    elif isinstance(loaded, Webhook):
        calls = loaded.identifies
        loaded.message_id.encode()
    elif isinstance(loaded, dict):
        calls = [call for call in loaded.get("batch", ()) if isinstance(call, Identify)]
        for user_id in loaded.get("user_ids", ()):
            check_user(user_id)
    elif isinstance(loaded, tuple):
        for user_id in loaded[1]:
            check_user(user_id or "none")
    for user_id, traits, at_ms in calls:
        check_user(user_id or "none")
        assert traits
        for name, member in traits.items():
            assert member is True or member is False
            check_trait(name)
        assert at_ms is None or abs(at_ms) < 1 << 53
    check_changes(calls)


def check_changes(calls: list[Identify]) -> None:
    """Each (user, cohort) must occur once, and none may be lost."""
    changes = membership_changes(calls)
    stated = [(c.cohort.id, user) for c in changes for user in c.user_ids]
    assert len(stated) == len(set(stated))
    assert set(stated) == {
        (Cohort.from_trait(name).id, call.user_id)
        for call in calls
        for name in call.traits
        if call.user_id
    }


def check_user(user_id: str) -> None:
    assert 0 < len(user_id.encode()) <= MAX_USER_ID_BYTES
    assert "\0" not in user_id
    assert not user_id.isspace()


def check_trait(name: str) -> None:
    cohort = Cohort.from_trait(name)
    assert cohort == Cohort.from_trait(str(name))
    assert cohort.trait == name
    assert 0 < len(cohort.id.encode()) <= MAX_TRAIT_BYTES
    assert cohort.id == cohort.id.strip()
    assert ":" not in cohort.id
    assert name.rstrip().endswith(cohort.id) or cohort.id.startswith("name-")
    # The id identifies the cohort in a list's path, so it must map to the same cohort again.
    assert Cohort.from_trait(f"n: {cohort.id}").id == cohort.id


def check_agreement(value: dict[str, object]) -> None:
    """The fast path must accept and return the same as the item schema."""
    items = value.get("batch")
    for item in items if isinstance(items, list) else [value]:
        accepted = accept(item, set())
        if accepted is None:
            continue
        try:
            loaded = IdentifySchema().load(item)
        except ValidationError as error:
            raise AssertionError(error.messages) from error
        assert loaded == accepted


TARGETS: dict[str, Callable[[bytes], None]] = {"body": body, "trait": trait}
