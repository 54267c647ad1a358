"""Amplitude's API, played by the simulator on a socket, and quick clients of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask

from app.settings import AmplitudeKeys
from app.store import Tuning
from app.upstream.client import Client, Pace
from simulator.upstream import Upstream
from tests.integration.conftest import APP
from tests.integration.upstream.here import Here

QUICK = Pace(
    backoff_seconds=0.01,
    throttled_seconds=0.02,
    throttled_most_seconds=1.0,
    export_first_seconds=0.02,
    export_most_seconds=0.05,
    export_seconds=0.5,
    connect_seconds=2.0,
    read_seconds=5.0,
)

MakeClient = Callable[..., Client]


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """The API, without cohorts. Exports are done at once."""
    with Upstream(job_seconds=0) as upstream:
        yield upstream


@pytest.fixture
def make_client(upstream: Upstream) -> MakeClient:
    """Build a client with the right keys; keyword arguments are its own, or fields of its pace."""

    def make(
        target: str | None = None,
        secret_key: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
        **pace: Any,
    ) -> Client:
        return Client(
            upstream.url,
            upstream.api_key,
            secret_key or upstream.secret_key,
            target=target,
            pace=replace(QUICK, **pace),
            sleep=sleep,
        )

    return make


@pytest.fixture
def make_here(make_app: Callable[..., Flask], upstream: Upstream) -> Callable[..., Here]:
    """Build the service with Amplitude's keys, a tuning if one is given, and further settings."""

    def make(*tuning: Tuning, **settings: object) -> Here:
        keys = AmplitudeKeys(APP, upstream.api_key, upstream.secret_key)
        return Here(
            make_app(*tuning, amplitude_keys=(keys,), amplitude_url=upstream.url, **settings),
            upstream,
        )

    return make


@pytest.fixture
def here(make_here: Callable[..., Here]) -> Here:
    return make_here()
