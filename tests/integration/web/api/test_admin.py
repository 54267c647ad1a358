"""The operator's calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient

from app.server.background import Background
from app.services import services
from app.settings import ApiKey
from app.store import Store
from simulator import payloads
from tests.integration.conftest import APP, KEY, caller
from tests.integration.store_contents import members, traits
from tests.support.effort import PARTITIONS

BOSS, OTHER = "the-admin-key", "the-admin-key-of-another-app"
TRAIT, TWO = "[Amplitude] Power users: abc123", "[Amplitude] two: 2"
USERS = [f"u{n}" for n in range(20)]


@pytest.fixture(params=PARTITIONS)
def service(request: pytest.FixtureRequest, make_app: Callable[..., Flask]) -> Flask:
    keys = (ApiKey(APP, BOSS), ApiKey("other", OTHER))
    return make_app(store_partitions=request.param, admin_api_keys=keys)


@pytest.fixture
def boss(service: Flask) -> FlaskClient:
    """A caller with the admin key; two cohorts are there."""
    boss = caller(service, BOSS)
    for key in (BOSS, OTHER):
        http = caller(service, key)
        assert say(http, TRAIT, True, *USERS) == 200
        assert say(http, TRAIT, False, *USERS[:5]) == 200
        assert say(http, TWO, True, "u7") == 200
    return boss


def say(http: FlaskClient, trait: str, member: bool, *users: str) -> int:
    body = payloads.batch(users, trait, member)
    return http.post(payloads.COHORT_PATH, json=body).status_code


def reply(response: Any) -> tuple[int, Any]:
    return response.status_code, response.json


class TestDeleteCohort:
    @pytest.mark.parametrize("path", ["/api/v1/cohorts/abc123", "/api/v1/cohorts/abc123/"])
    def test_delete__is_accepted_and_done_in_the_background(
        self, path: str, service: Flask, boss: FlaskClient, redis_client: redis.Redis
    ) -> None:
        for _ in range(2):  # a repeat is accepted too
            assert reply(boss.delete(path)) == (
                202,
                {"cohortId": "abc123", "status": "deleting"},
            )
        late = boss.post(payloads.COHORT_PATH, json=payloads.identify("u1", TRAIT, True))
        assert (late.status_code, late.json["reason"]) == (404, "cohort_being_deleted")
        for _ in range(2):
            Background(services(service).store).work()
        assert members(redis_client, APP) == {"2": {"u7"}}
        assert traits(redis_client, APP) == {"u7": {TWO: "true"}}
        assert boss.delete(path).status_code == 404
        assert members(redis_client, "other") == {"abc123": set(USERS[5:]), "2": {"u7"}}

    @pytest.mark.parametrize(
        ("body", "place"),
        [
            (payloads.identify("u1", TWO, True), ""),
            (payloads.batch(["u1"], TWO, True), "batch.0."),
        ],
    )
    def test_call__of_which_one_cohort_is_being_deleted__is_accepted_and_tells_it(
        self, body: Any, place: str, boss: FlaskClient, redis_client: redis.Redis
    ) -> None:
        boss.delete("/api/v1/cohorts/abc123")
        (call,) = body.get("batch", [body])
        call["traits"][TRAIT] = True
        said = boss.post(payloads.COHORT_PATH, json=body)
        assert said.status_code == 200
        assert [said.json[name] for name in ("accepted", "changed", "rejected")] == [1, 1, 0]
        assert [(error["place"], error["reason"]) for error in said.json["errors"]] == [
            (f"{place}traits.{TRAIT}", "cohort_being_deleted")
        ]
        assert traits(redis_client, APP)["u1"][TWO] == "true"

    def test_delete__of_an_unknown_cohort__is_404(self, boss: FlaskClient) -> None:
        status, problem = reply(boss.delete("/api/v1/cohorts/nope"))
        assert (status, problem["reason"]) == (404, "unknown_cohort")
        assert boss.delete("/api/v1/cohorts/").status_code in (404, 405)

    @pytest.mark.parametrize("cohort_id", ["a/b", "a b", "ü🎉", "a%2Fb", "/a", "a/", "a//b", ".."])
    def test_delete__ids_of_every_kind__are_found(self, cohort_id: str, boss: FlaskClient) -> None:
        assert say(boss, f"n: {cohort_id}", True, "u1") == 200
        sent = quote(cohort_id, safe="")
        assert reply(boss.delete(f"/api/v1/cohorts/{sent}")) == (
            202,
            {"cohortId": cohort_id, "status": "deleting"},
        )


class TestEraseUser:
    def test_erase__of_a_member__takes_everything_and_tells_what(
        self, service: Flask, boss: FlaskClient, redis_client: redis.Redis
    ) -> None:
        assert reply(boss.delete("/api/v1/users/u7")) == (
            200,
            {
                "traits": 2,
                "streamEntriesRemoved": 1,
                "streamEntriesKept": 1,
                "suppressed": False,
            },
        )
        assert "u7" not in traits(redis_client, APP)
        assert "u7" not in members(redis_client, APP)["abc123"]
        assert traits(redis_client, "other")["u7"] == {TRAIT: "true", TWO: "true"}
        assert say(boss, TWO, True, "u7") == 200
        assert members(redis_client, APP)["2"] == {"u7"}
        assert services(service).store.checker.run([APP, "other"]).findings == []

    def test_erase__store_full__takes_everything_too(
        self, boss: FlaskClient, redis_client: redis.Redis
    ) -> None:
        redis_client.config_set("maxmemory", 1)
        try:
            assert reply(boss.delete("/api/v1/users/u7"))[0] == 200
        finally:
            redis_client.config_set("maxmemory", 0)
        assert "u7" not in traits(redis_client, APP)
        assert "u7" not in members(redis_client, APP)["abc123"]

    def test_erase__of_nobody__is_fine_and_may_be_repeated(self, boss: FlaskClient) -> None:
        for _ in range(2):
            status, erased = reply(boss.delete("/api/v1/users/nobody"))
            assert (status, erased["traits"]) == (200, 0)

    def test_suppressed__stays_out_until_let_in_again(
        self, boss: FlaskClient, redis_client: redis.Redis
    ) -> None:
        for _ in range(2):
            assert boss.delete("/api/v1/users/u7?suppress=true").json["suppressed"] is True
        assert boss.delete("/api/v1/users/u7").json["suppressed"] is True  # it still is
        said = boss.post(payloads.COHORT_PATH, json=payloads.identify("u7", TRAIT, True))
        assert (said.json["rejected"], said.json["errors"][0]["reason"]) == (1, "suppressed_user")
        assert "u7" not in traits(redis_client, APP)
        assert reply(boss.delete("/api/v1/suppressions/u7")) == (200, {"removed": True})
        assert reply(boss.delete("/api/v1/suppressions/u7")) == (200, {"removed": False})
        assert say(boss, TRAIT, True, "u7") == 200
        assert traits(redis_client, APP)["u7"] == {TRAIT: "true"}

    @pytest.mark.parametrize("value", ["yes", "1", "", "True"])
    def test_suppress__neither_true_nor_false__is_400_and_changes_nothing(
        self, value: str, boss: FlaskClient, redis_client: redis.Redis
    ) -> None:
        status, problem = reply(boss.delete(f"/api/v1/users/u7?suppress={value}"))
        assert (status, problem["reason"]) == (400, "invalid_parameter")
        assert problem["errors"] == [{"place": "suppress", "message": "Must be true or false."}]
        assert "u7" in traits(redis_client, APP)

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("a%00", "Must not contain NUL."),
            ("x" * 1025, "Must be at most 1024 bytes of UTF-8."),
            ("/", "Must not be empty."),
        ],
    )
    @pytest.mark.parametrize("collection", ["users", "suppressions"])
    def test_user_id__that_is_none__is_400(
        self, collection: str, path: str, message: str, boss: FlaskClient
    ) -> None:
        status, problem = reply(boss.delete(f"/api/v1/{collection}/{path}"))
        assert (status, problem["reason"]) == (400, "invalid_parameter")
        assert problem["errors"] == [{"place": "user_id", "message": message}]


class TestRegisterUsers:
    @pytest.mark.parametrize("path", ["/api/v1/users", "/api/v1/users/"])
    def test_register__lets_users_in(
        self, path: str, make_app: Callable[..., Flask], redis_client: redis.Redis
    ) -> None:
        keys = {"admin_api_keys": (ApiKey(APP, BOSS), ApiKey("other", OTHER))}
        service = make_app(user_policy="known", **keys)
        boss = caller(service, BOSS)
        assert say(boss, TRAIT, True, "a", "b/c") == 404
        assert reply(boss.post(path, json={"userIds": ["a", "b/c", "a"]})) == (
            200,
            {"registered": 2},
        )
        assert reply(boss.post(path, json={"user_ids": ["a"]})) == (200, {"registered": 0})
        assert reply(boss.post(path, json={"userIds": []})) == (200, {"registered": 0})
        assert reply(boss.post(path, json={"userIds": [7]})) == (200, {"registered": 1})
        assert say(boss, TRAIT, True, "7") == 200
        assert say(boss, TRAIT, False, "7") == 200
        assert say(boss, TRAIT, True, "a", "b/c") == 200
        assert members(redis_client, APP) == {"abc123": {"a", "b/c"}}
        assert say(caller(service, OTHER), TRAIT, True, "a") == 404

    @pytest.mark.parametrize(
        ("body", "place"),
        [
            ({}, "userIds"),
            ({"userIds": "a"}, "userIds"),
            ({"userIds": ["a", ""]}, "userIds.1"),
            ({"userIds": ["a", " "]}, "userIds.1"),
            ({"userIds": ["a", 1.0]}, "userIds.1"),
            ({"userIds": ["a", True]}, "userIds.1"),
            ({"userIds": ["a", None]}, "userIds.1"),
        ],
    )
    def test_register__of_what_are_no_ids__is_400_and_registers_nobody(
        self, body: Any, place: str, boss: FlaskClient, redis_client: redis.Redis
    ) -> None:
        status, problem = reply(boss.post("/api/v1/users", json=body))
        assert (status, problem["errors"][0]["place"]) == (400, place)
        assert redis_client.keys("*:registered") == []


CALLS = [
    ("DELETE", "/api/v1/cohorts/abc123"),
    ("DELETE", "/api/v1/users/u7"),
    ("DELETE", "/api/v1/suppressions/u7"),
    ("POST", "/api/v1/users"),
]


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_call__with_the_ingest_key__is_403_and_changes_nothing(
    method: str, path: str, boss: FlaskClient, service: Flask, redis_client: redis.Redis
) -> None:
    before = traits(redis_client, APP)
    response = caller(service, KEY).open(path, method=method, json={"userIds": ["u1"]})
    assert (response.status_code, response.json["reason"]) == (403, "missing_scope")
    assert traits(redis_client, APP) == before
    assert redis_client.keys("*:registered") == []


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_call__store_laid_out_otherwise__is_503_and_changes_nothing(
    method: str,
    path: str,
    boss: FlaskClient,
    make_app: Callable[..., Flask],
    redis_client: redis.Redis,
) -> None:
    before = traits(redis_client, APP)
    other = make_app(store_partitions=7, admin_api_keys=(ApiKey(APP, BOSS),))
    response = caller(other, BOSS).open(path, method=method, json={"userIds": ["u1"]})
    assert (response.status_code, response.json["reason"]) == (503, "store_misconfigured")
    assert traits(redis_client, APP) == before


def test_store__after_all_calls__is_consistent(boss: FlaskClient, service: Flask) -> None:
    store: Store = services(service).store
    boss.delete("/api/v1/users/u7?suppress=true")
    boss.delete("/api/v1/cohorts/abc123")
    assert store.checker.run(store.apps()).findings == []
    Background(store).work()
    Background(store).work()
    assert store.checker.run(store.apps()).findings == []
