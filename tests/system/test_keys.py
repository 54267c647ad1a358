"""Keys made by command, on a running service of several workers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
import redis

from tests.support.cli import flask
from tests.support.effort import thorough
from tests.support.polling import wait_until
from tests.support.service import APP, KEY, Service, running
from tests.support.stores import running_store

ONE = {"type": "identify", "userId": "ann", "traits": {"Buyers:b1": True}}
# What the documentation promises, in seconds, and what a busy machine may need besides.
SOON = 5.0 + 10.0


@pytest.fixture(scope="module")
def store_url() -> Iterator[str]:
    """A store that tests may empty: no other test's service takes that for a loss."""
    with running_store() as url:
        yield url


@pytest.fixture(scope="module")
def three_workers(store_url: str) -> Iterator[Service]:
    env = {"REDIS_URL": store_url, "WEB_CONCURRENCY": "3", "AUTH_FAILURE_RATE_LIMIT": "off"}
    with running(env) as service:
        yield service


def make(store_url: str, *words: str) -> tuple[str, str]:
    """Make a key. Returns it and its id."""
    run = flask(store_url, "keys", "create", "--json", "--app-id", APP, *words)
    assert (run.returncode, run.stderr) == (0, "")
    told = json.loads(run.stdout)
    return told["key"], told["id"]


def ends(service: Service, key: str, outcome: str) -> bool:
    """Whether so many requests end like this that every worker has had some."""

    def one() -> str:
        reply = service.post(ONE, Authorization=f"Bearer {key}", Connection="close")
        found: str = reply.json().get("reason", "taken")
        return found

    return all(one() == outcome for _ in range(24))


def test_key__made_and_revoked__is_known_to_all_workers_within_seconds(
    three_workers: Service, store_url: str
) -> None:
    key, key_id = make(store_url, "--label", "amplitude")
    began = time.monotonic()
    wait_until(lambda: ends(three_workers, key, "taken"), SOON)
    assert time.monotonic() - began < SOON

    assert flask(store_url, "keys", "revoke", key_id, "--yes").returncode == 0
    wait_until(lambda: ends(three_workers, key, "revoked_key"), SOON)
    assert ends(three_workers, KEY, "taken")
    assert not [line for line in three_workers.lines if key in line]
    assert [event for event in three_workers.events() if event.get("key") == key_id]


@thorough
def test_key__that_expires__is_refused_by_all_workers_from_then_on(
    three_workers: Service, store_url: str
) -> None:
    key, _ = make(store_url, "--expires", "3s")
    wait_until(lambda: ends(three_workers, key, "expired_key"), SOON)


@thorough
def test_service__with_keys_in_the_store_alone__starts_and_takes_them(store_url: str) -> None:
    key, _ = make(store_url)
    with running({"REDIS_URL": store_url, "API_KEYS": ""}) as service:
        reply = service.post(ONE, Authorization=f"Bearer {key}")
        assert reply.status == 200
        assert service.post(ONE).json()["reason"] == "invalid_credentials"


@thorough
def test_service__with_no_keys_and_no_store__starts_and_says_what_is_wrong() -> None:
    with running({"REDIS_URL": "redis://127.0.0.1:1", "API_KEYS": ""}) as service:
        assert "cohort-receiver: API_KEYS: no key is set, and the store, which may have one," in (
            service.output()
        )
        assert service.post(ONE).json()["reason"] == "store_unreachable"


@thorough
def test_keys__of_a_store_that_lost_its_data__are_gone_and_those_of_the_environment_stay(
    redis_client: redis.Redis, store_url: str, three_workers: Service
) -> None:
    key, _ = make(store_url)
    wait_until(lambda: ends(three_workers, key, "taken"), SOON)
    redis_client.flushall()  # as a store that has lost its data
    wait_until(lambda: ends(three_workers, key, "invalid_credentials"), SOON)
    assert ends(three_workers, KEY, "taken")
