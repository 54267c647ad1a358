"""The level at which a request is logged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask
from structlog.testing import capture_logs

from app.settings import ApiKey
from tests.integration.conftest import APP, KEY

BODY = {"type": "identify", "userId": "ann", "traits": {"Buyers:b1": True}}
READ_KEY = "the-read-key"


@pytest.mark.parametrize(
    ("key", "status", "level"),
    [(KEY, 200, "info"), ("wrong", 401, "warning"), (READ_KEY, 403, "warning")],
)
def test_request__refused_because_of_its_key__is_a_warning(
    make_app: Callable[..., Flask], key: str, status: int, level: str
) -> None:
    client = make_app(read_api_keys=(ApiKey(APP, READ_KEY),)).test_client()
    with capture_logs() as events:
        path = "/api/v1/integration/amplitude/cohort"
        assert client.post(path, json=BODY, headers={"api_key": key}).status_code == status
    (event,) = (event for event in events if event["event"] == "request")
    assert (event["status"], event["log_level"]) == (status, level)
