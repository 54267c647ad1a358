"""One running service for the tests that only talk to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.conftest import running_store
from tests.system.service import ADMIN_KEY, APP, Service, running


@pytest.fixture(scope="session")
def store_url() -> Iterator[str]:
    """A store apart from the other tests': the service works on it in the background too."""
    with running_store() as url:
        yield url


@pytest.fixture(scope="session")
def service(store_url: str) -> Iterator[Service]:
    """The service on this test process's store."""
    env = {"REDIS_URL": store_url, "RATE_LIMIT": "off", "ADMIN_API_KEYS": f"{APP}:{ADMIN_KEY}"}
    with running(env) as service:
        yield service


@pytest.fixture(autouse=True)
def empty_store(redis_client: redis.Redis) -> None:
    """Every test begins with nothing stored."""
