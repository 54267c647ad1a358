"""A real store for every test that asks for one: a Valkey server for each test process."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import hypothesis
import pytest
import redis

from tests.support.stores import running_store

# Other programs may have the machine busy: how long an example takes says nothing here.
hypothesis.settings.register_profile(
    "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI, a skipped test fails: every program that a test needs must be installed there."""
    report = yield
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"CI skips no test: {call.excinfo and call.excinfo.value}"
    return report


@pytest.fixture(scope="session")
def store_url() -> Iterator[str]:
    """The address of a running store that belongs to this test process alone."""
    with running_store() as url:
        yield url


@pytest.fixture
def redis_client(store_url: str) -> Iterator[redis.Redis]:
    """A plain client, as a downstream reader has it, on an empty store."""
    with redis.Redis.from_url(store_url, decode_responses=True) as client:
        # Not in the background: how much room there is then may be what a test is about.
        client.execute_command("FLUSHALL", "SYNC")
        yield client
