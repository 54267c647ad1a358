"""One running service for the tests that only talk to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.support.service import ADMIN_KEY, APP, Service, running
from tests.support.stores import empty, running_store


@pytest.fixture(scope="session")
def store_url() -> Iterator[str]:
    """A store apart from the other tests': the service works on it in the background too."""
    with running_store() as url:
        yield url


@pytest.fixture(scope="session")
def service(store_url: str) -> Iterator[Service]:
    """The service, with two workers, on this test process's store."""
    env = {
        "REDIS_URL": store_url,
        "RATE_LIMIT": "off",
        "ADMIN_API_KEYS": f"{APP}:{ADMIN_KEY}",
        "WEB_CONCURRENCY": "2",
    }
    with running(env) as service:
        yield service


@pytest.fixture
def redis_client(store_url: str) -> Iterator[redis.Redis]:
    """A plain client, as a downstream reader has it, on an empty store."""
    with redis.Redis.from_url(store_url, decode_responses=True) as client:
        empty(client)
        yield client


@pytest.fixture(autouse=True)
def empty_store(redis_client: redis.Redis) -> None:
    """Every test begins with nothing stored."""
