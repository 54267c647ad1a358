"""Lists, as Amplitude's list-based integration calls them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient

from app.services import services
from app.store import Store
from simulator import payloads
from tests.integration.conftest import APP, caller
from tests.integration.store_contents import members, traits

TRAIT = payloads.trait_name("Power users", "abc")


def create(client: FlaskClient, name: str = TRAIT):
    return client.post("/lists", json=payloads.list_create(name))


def test_create__reply__carries_the_id_in_every_known_place(client: FlaskClient) -> None:
    reply = create(client)
    assert (reply.status_code, reply.json) == (
        200,
        {"list_id": "abc", "listId": "abc", "response": {"list_id": "abc", "listId": "abc"}},
    )


def test_create__again_and_by_four_at_once__is_the_same_list(
    make_app: Callable[..., Flask], redis_client: redis.Redis
) -> None:
    workers = [make_app(store_partitions=2) for _ in range(4)]

    def create_five(worker: Flask) -> set[str]:
        return {create(caller(worker)).json["listId"] for _ in range(5)}

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(create_five, workers)) == [{"abc"}] * 4
    store = services(workers[0]).store
    assert [record.id for record in store.registry.page(APP)] == ["abc"]
    assert store.registry.find(APP, "abc").earlier_names == {}


def test_create__name_without_id__gives_an_id_that_works(client: FlaskClient) -> None:
    list_id = create(client, "VIPs / 100%").json["listId"]
    assert client.post(f"/lists/{list_id}/add", json={"userIds": ["u"]}).status_code == 200


@pytest.mark.parametrize("key", ["userIds", "user_ids"])
def test_users__under_either_key__enter_and_leave(
    client: FlaskClient, redis_client: redis.Redis, key: str
) -> None:
    create(client)
    assert client.post("/lists/abc/add", json={key: ["a", "b"]}).json == {
        "accepted": 2,
        "changed": 2,
        "rejected": 0,
        "errors": [],
    }
    client.post("/lists/abc/remove/", json={key: ["b"]})
    assert traits(redis_client, APP) == {"a": {TRAIT: "true"}, "b": {TRAIT: "false"}}
    assert members(redis_client, APP) == {"abc": {"a"}}


@pytest.mark.parametrize("call", ["add", "remove"])
def test_unknown_list__is_404(client: FlaskClient, call: str) -> None:
    reply = client.post(f"/lists/nobody/{call}", json={"userIds": ["a"]})
    assert (reply.status_code, reply.json["reason"]) == (404, "unknown_cohort")


def test_empty_user_ids__change_nothing(client: FlaskClient, redis_client: redis.Redis) -> None:
    create(client)
    reply = client.post("/lists/abc/add", json={"userIds": []})
    assert (reply.status_code, reply.json["accepted"]) == (200, 0)
    assert traits(redis_client, APP) == {}


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({}, "userIds"),
        ({"userIds": "a"}, "userIds"),
        ({"userIds": ["a"], "user_ids": ["b"]}, "user_ids"),
        ({"userIds": [], "user_ids": []}, "user_ids"),
        ({"userIds": None}, "userIds"),
        ({"userIds": ["a"], "context": 1}, "context"),
    ],
)
def test_add__malformed__names_the_place_and_writes_nothing(
    client: FlaskClient, redis_client: redis.Redis, body: dict, place: str
) -> None:
    create(client)
    before = set(redis_client.keys("cohorts:{shop*"))
    reply = client.post("/lists/abc/add", json=body)
    assert reply.status_code == 400
    assert set(redis_client.keys("cohorts:{shop*")) == before
    assert [error["place"] for error in reply.json["errors"]] == [place]


@pytest.mark.parametrize("name", [None, "", 7, "x" * 513])
def test_create__bad_name__is_400(client: FlaskClient, name: object) -> None:
    reply = client.post("/lists", json={"name": name})
    assert (reply.status_code, reply.json["errors"][0]["place"]) == (400, "name")


@pytest.mark.parametrize("path", ["/lists/$listId/remove", "/lists/nobody/remove"])
def test_identify_body__at_remove__is_taken_as_what_it_is(
    client: FlaskClient, redis_client: redis.Redis, path: str
) -> None:
    assert client.post(path, json=payloads.identify("a", TRAIT, True)).status_code == 200
    assert client.post(path, json=payloads.batch(["b"], TRAIT, True)).status_code == 200
    assert members(redis_client, APP) == {"abc": {"a", "b"}}


def test_cohort_known_from_identify__is_a_list_too(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    client.post(payloads.COHORT_PATH, json=payloads.identify("a", TRAIT, True))
    assert client.post("/lists/abc/add", json={"userIds": ["b"]}).json["changed"] == 1
    assert members(redis_client, APP) == {"abc": {"a", "b"}}


def test_list__created_under_a_new_name__is_renamed(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    create(client)
    client.post("/lists/abc/add", json={"userIds": ["a"]})
    renamed = payloads.trait_name("Other", "abc")
    create(client, renamed)
    client.post("/lists/abc/add", json={"userIds": ["b"]})
    assert traits(redis_client, APP)["b"] == {renamed: "true"}


def test_add__after_a_rename_that_another_worker_has_seen__takes_the_new_name(
    client: FlaskClient, make_app: Callable[..., Flask], redis_client: redis.Redis
) -> None:
    other = caller(make_app())
    create(client)
    client.post("/lists/abc/add", json={"userIds": ["a"]})
    renamed = payloads.trait_name("Other", "abc")
    create(other, renamed)
    assert client.post("/lists/abc/add", json={"userIds": ["a", "b"]}).json["changed"] == 2
    assert {user: held[renamed] for user, held in traits(redis_client, APP).items()} == {
        "a": "true",
        "b": "true",
    }
    state = redis_client.hgetall(f"cohorts:{{{APP}}}:cohort:abc:state")
    assert state["trait"] == renamed


def test_add__where_only_some_partitions_know_the_name__counts_all_that_changed(
    make_app: Callable[..., Flask], redis_client: redis.Redis
) -> None:
    app = make_app(store_partitions=8)
    http, ids = caller(app), payloads.user_ids(100)
    http.post(payloads.COHORT_PATH, json=payloads.identify(ids[0], TRAIT, True))
    assert http.post("/lists/abc/add", json={"userIds": ids[:50]}).json["changed"] == 49
    renamed = payloads.trait_name("Other", "abc")
    http.post(payloads.COHORT_PATH, json=payloads.identify(ids[0], renamed, True))
    assert http.post("/lists/abc/add", json={"userIds": ids[50:]}).json["changed"] == 50
    assert services(app).store.registry.find(APP, "abc").entered == 100


@pytest.mark.parametrize("users", [[], ["a"], ["suppressed"]])
def test_add__to_a_list_that_another_worker_has_deleted__is_404(
    client: FlaskClient, store: Store, redis_client: redis.Redis, users: list[str]
) -> None:
    create(client)
    client.post("/lists/abc/add", json={"userIds": ["a"]})
    store.erasure.erase(APP, "suppressed", suppress=True)
    store.jobs.begin_deletion(APP, "abc")
    while jobs := store.jobs.pending():
        for job in jobs:
            store.jobs.step(job)
    reply = client.post("/lists/abc/add", json={"userIds": users})
    assert (reply.status_code, reply.json["reason"]) == (404, "unknown_cohort")
    assert members(redis_client, APP) == {}


def test_add__again_and_again__asks_the_store_once_for_the_name(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    create(client)
    client.post("/lists/abc/add", json={"userIds": ["a"]})
    asked = redis_client.info("commandstats")["cmdstat_hmget"]["calls"]
    client.post("/lists/abc/add", json={"userIds": ["b"]})
    # The script asks once for itself.
    assert redis_client.info("commandstats")["cmdstat_hmget"]["calls"] == asked + 1
