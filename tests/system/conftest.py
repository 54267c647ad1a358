"""One running service for the tests that only talk to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.service import Service, running


@pytest.fixture(scope="session")
def service(store_url: str) -> Iterator[Service]:
    """The service on this test process's store."""
    with running({"REDIS_URL": store_url, "RATE_LIMIT": "off"}) as service:
        yield service
