"""The cases of docs/reader-cases.json: every reader passes them, and the store is as they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast
from urllib.parse import quote

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient

from app.settings import ApiKey
from cohort_reader import UnknownCohort
from cohort_reader.testing import (
    InMemoryAsyncCohortReader,
    InMemoryCohortReader,
    InMemoryCohorts,
)
from simulator import payloads
from tests.integration.conftest import caller
from tests.integration.reader.blocking import Blocking, Loop
from tests.integration.reader.docs_examples import DOCS

STORES: list[dict[str, Any]] = json.loads((DOCS / "reader-cases.json").read_text())["stores"]
stores = pytest.mark.parametrize("store", STORES, ids=[store["name"] for store in STORES])

Ask = Callable[[dict[str, Any]], object]


def wrong_answers(store: dict[str, Any], ask: Ask) -> list[object]:
    assert len(store["cases"]) > 50
    answers = [(case, ask(case)) for case in store["cases"]]
    return [(case, answer) for case, answer in answers if answer != case["answer"]]


def ask_reader(reader: Callable[[bool], Any]) -> Ask:
    """How a reader answers a case; ``reader`` is given whether it is strict."""
    readers = {strict: reader(strict) for strict in (False, True)}

    def ask(case: dict[str, Any]) -> object:
        one = readers[case.get("strict", False)]
        user, users, cohort = case.get("user"), case.get("users"), case.get("cohort")
        questions: dict[str, Callable[[], object]] = {
            "isMember": lambda: one.is_member(user, cohort),
            "memberSince": lambda: one.member_since(user, cohort),
            "areMembers": lambda: one.are_members(users, cohort),
            "traits": lambda: one.traits(user),
            "cohorts": lambda: sorted(one.cohorts(user)),
            "memberCount": lambda: one.member_count(cohort),
            "members": lambda: sorted(one.members(cohort)),
            "exists": lambda: one.exists(cohort),
            "cohortIds": lambda: one.cohort_ids(),
        }
        try:
            return questions[case["question"]]()
        except UnknownCohort:
            return {"error": "unknownCohort"}

    return ask


def fill(client: redis.Redis, store: dict[str, Any]) -> None:
    for command in store["commands"]:
        client.execute_command(*command)


@stores
def test_cases__the_reader__answers_all(
    store: dict[str, Any], redis_client: redis.Redis, make_reader: Callable[..., Any]
) -> None:
    fill(redis_client, store)
    options = {"app": store["app"], "prefix": store["prefix"]}
    ask = ask_reader(lambda strict: make_reader(strict=strict, **options))
    assert wrong_answers(store, ask) == []


@stores
def test_cases__the_reader_with_a_cache__answers_all_twice(
    store: dict[str, Any], redis_client: redis.Redis, make_reader: Callable[..., Any]
) -> None:
    fill(redis_client, store)
    options = {"app": store["app"], "cache_entries": 1000, "cache_seconds": 60}
    ask = ask_reader(lambda strict: make_reader(strict=strict, **options))
    assert wrong_answers(store, ask) == []
    assert wrong_answers(store, ask) == []


@stores
def test_cases__the_reader_in_memory__answers_all(
    store: dict[str, Any], kind: str, loop: Loop | None
) -> None:
    cohorts = InMemoryCohorts()
    for cohort_id, about in store["contents"].items():
        cohorts.add_cohort(cohort_id, about["trait"])
        for user_id, since in about["members"].items():
            cohorts.enter(cohort_id, user_id, since_ms=since)
        cohorts.leave(cohort_id, *about["left"])

    def reader(strict: bool) -> Any:
        if loop is None:
            return InMemoryCohortReader(cohorts, strict=strict)
        return Blocking(InMemoryAsyncCohortReader(cohorts, strict=strict), loop)

    assert wrong_answers(store, ask_reader(reader)) == []


@pytest.fixture
def receive(make_app: Callable[..., Flask]) -> Callable[[dict[str, Any]], FlaskClient]:
    """Let the service receive what a store holds."""

    def receive(store: dict[str, Any]) -> FlaskClient:
        app = make_app(
            store_partitions=store["partitions"],
            admin_api_keys=(ApiKey(store["app"], "key"),),
        )
        http = caller(app, "key")
        for about in store["contents"].values():
            calls = [(user_id, True, since) for user_id, since in about["members"].items()]
            calls += [(user_id, False, 1767225600000) for user_id in about["left"]]
            for user_id, member, at in sorted(calls, key=lambda call: call[2]):
                time = datetime.fromtimestamp(at / 1000, UTC).isoformat()
                body = payloads.identify(user_id, about["trait"], member, timestamp=time)
                assert http.post("/v1/identify", json=body).status_code == 200
        return http

    return receive


@stores
def test_cases__what_the_commands_store__is_what_the_service_stores(
    store: dict[str, Any],
    redis_client: redis.Redis,
    receive: Callable[[dict[str, Any]], FlaskClient],
) -> None:
    def contents() -> dict[str, object]:
        read = {
            "string": redis_client.get,
            "hash": redis_client.hgetall,
            "zset": lambda key: {
                member: int(score) for member, score in redis_client.zscan_iter(key)
            },
        }
        keys = {command[1] for command in store["commands"]}
        return {key: read[redis_client.type(key)](key) for key in keys if redis_client.exists(key)}

    fill(redis_client, store)
    filled = contents()
    redis_client.flushall()
    receive(store)
    found = contents()
    for one in (found, filled):
        # A cohort may also be listed where it has no users.
        listed = [set(cast(Any, one.pop(key))) for key in list(one) if key.endswith(":cohorts")]
        one["cohorts"] = set().union(*listed)
    assert found == filled


@stores
def test_cases__the_api__answers_all(
    store: dict[str, Any], receive: Callable[[dict[str, Any]], FlaskClient]
) -> None:
    http = receive(store)

    def get(path: str, *ids: str) -> Any:
        return http.get(path.format(*(quote(one, safe="") for one in ids)))

    def query_members(cohort: str, users: list[str]) -> dict[str, Any]:
        path = f"/api/v1/cohorts/{quote(cohort, safe='')}/members/query"
        reply = http.post(path, json={"userIds": users})
        return {one["userId"]: one["since"] for one in reply.json.get("members", [])}

    def ask(case: dict[str, Any]) -> object:
        user, cohort = case.get("user", ""), case.get("cohort", "")
        if case["question"] in ("isMember", "memberSince"):
            reply = get("/api/v1/cohorts/{}/members/{}", cohort, user)
            since = query_members(cohort, [user]).get(user)
            if reply.status_code == 404:  # the API is always strict
                assert since is None
                return {"error": "unknownCohort"} if case.get("strict") else case["answer"]
            assert reply.json["since"] == since
            return reply.json["member" if case["question"] == "isMember" else "since"]
        if case["question"] == "areMembers":
            users = case["users"]
            found = http.post("/api/v1/users/query", json={"userIds": users}).json["users"]
            answer = {one["userId"]: cohort in [c["id"] for c in one["cohorts"]] for one in found}
            members = query_members(cohort, users)
            assert list(members) == [user for user in dict.fromkeys(users) if answer[user]]
            return answer
        if case["question"] in ("traits", "cohorts"):
            found = get("/api/v1/users/{}", user).json
            return (
                found["traits"]
                if case["question"] == "traits"
                else sorted(one["id"] for one in found["cohorts"])
            )
        if case["question"] == "cohortIds":
            return sorted(one["id"] for one in get("/api/v1/cohorts").json["cohorts"])
        reply = get("/api/v1/cohorts/{}", cohort)
        if case["question"] == "exists":
            return reply.status_code == 200
        if case["question"] == "memberCount":
            return reply.json["members"] if reply.status_code == 200 else 0
        members = get("/api/v1/cohorts/{}/members", cohort).json["members"]
        return sorted(one["userId"] for one in members)

    assert wrong_answers(store, ask) == []
