"""A real store for every test that asks for one: a Valkey server for each test process."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import redis
from xdist.scheduler import LoadScopeScheduling

from tests.support.effort import NOT_THOROUGH, THOROUGH
from tests.support.stores import client_of_empty_store, running_store

# In the background of a shell, SIGINT is ignored, also by the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile(
    "tests",
    max_examples=200 if THOROUGH else 40,
    deadline=None,  # other programs may use the machine: how long an example takes says nothing
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tests")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI, a skipped test fails: every program that a test needs must be installed there.

    Only the tests on a second kind of store may skip those that need more effort.
    """
    report = yield
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        reason = str(call.excinfo and call.excinfo.value)
        if NOT_THOROUGH not in reason:
            report.outcome = "failed"
            report.longrepr = f"CI skips no test: {reason}"
    return report


class SharedServers(LoadScopeScheduling):
    """Gives the tests of a module that share a server to one process: no other starts it too."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return path if _shares(self.config.rootpath / path) else nodeid


@cache
def _shares(module: Path) -> bool:
    text = module.read_text()
    return 'scope="module"' in text or 'scope="session"' in text


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharedServers:
    return SharedServers(config, log)


@pytest.fixture(scope="session")
def store_url() -> Iterator[str]:
    """The address of a running store that belongs to this test process alone."""
    with running_store() as url:
        yield url


@pytest.fixture
def redis_client(store_url: str) -> Iterator[redis.Redis]:
    """A plain client, as a downstream reader has it, on an empty store."""
    with client_of_empty_store(store_url) as client:
        yield client
