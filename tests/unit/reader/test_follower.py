"""What a follower is made with, and how long it waits for a store that is away."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cohort_reader import Follower


@pytest.fixture
def away(tmp_path: Path) -> redis.Redis:
    path = str(tmp_path / "no-store")
    return redis.Redis(unix_socket_path=path, decode_responses=True, retry=Retry(NoBackoff(), 0))


class NotingFollower(Follower):
    """Notes how long it would pause, and stops after ten times."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__(client, "mail")
        self.pauses: list[float] = []

    def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if len(self.pauses) == 10:
            self.stop()


def test_run__while_the_store_is_away__waits_longer_each_time_up_to_five_seconds(
    away: redis.Redis,
) -> None:
    follower = NotingFollower(away)
    follower.run(print)
    assert follower.pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5, 5]


def test_options__not_given__are_those_that_the_docs_state() -> None:
    given = inspect.signature(Follower).parameters
    names = ("handler_seconds", "retry_seconds", "max_deliveries")
    assert [given[name].default for name in names] == [60, 1, 10]


@pytest.mark.parametrize(
    "least", [{"handler_seconds": 0.01}, {"retry_seconds": 0}, {"batch_size": 1}], ids=str
)
def test_option__of_the_least_value__is_accepted(away: redis.Redis, least: Any) -> None:
    Follower(away, "mail", **least)


@pytest.mark.parametrize(
    "wrong",
    [{"handler_seconds": 0.009}, {"retry_seconds": -1}, {"batch_size": 0}, {"max_deliveries": 0}],
    ids=str,
)
def test_option__that_is_too_small__is_refused(away: redis.Redis, wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"too small|at least 1"):
        Follower(away, "mail", **wrong)
