"""Rate limits: how many requests get through, whoever counts them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from limits import parse

from app.settings import Settings
from app.store import RateLimiter, Tuning, connect
from app.store.keys import Keys
from tests.support.polling import wait_until
from tests.support.stores import running_store

KEYS = Keys("cohorts", 1)
NAMES = "key", "shop", "ingest"


def limiter(url: str, **tuning: object) -> RateLimiter:
    return RateLimiter(connect(Settings(redis_url=url)), KEYS, Tuning(**tuning))


def admitted(limiters: list[RateLimiter], text: str, clients: int) -> int:
    """How many requests many clients get through before each has been refused a few times."""
    limit = parse(text)

    def send(number: int) -> int:
        rates, passed, refused = limiters[number % len(limiters)], 0, 0
        while refused < 3:
            if rates.hit(limit, *NAMES) is None:
                passed += 1
            else:
                refused += 1
        return passed

    with ThreadPoolExecutor(clients) as pool:
        return sum(pool.map(send, range(clients)))


@pytest.mark.parametrize("clients", [1, 64])
@pytest.mark.parametrize("text", ["20/hour", "1000/hour"])
def test_limit__of_one_worker_with_many_clients__is_reached_exactly(
    store_url: str, redis_client: redis.Redis, clients: int, text: str
) -> None:
    assert admitted([limiter(store_url)], text, clients) == parse(text).amount


def test_limit__of_several_workers_with_many_clients__is_nearly_reached_and_never_exceeded(
    store_url: str, redis_client: redis.Redis
) -> None:
    workers = [limiter(store_url) for _ in range(4)]
    assert 980 <= admitted(workers, "1000/hour", 64) <= 1000


def test_hits__that_arrive_together__count_no_more_than_they_are(
    store_url: str, redis_client: redis.Redis
) -> None:
    rates, limit = limiter(store_url), parse("10000/hour")
    with ThreadPoolExecutor(64) as pool:
        assert set(pool.map(lambda _: rates.hit(limit, *NAMES), range(64))) == {None}
    (key,) = redis_client.keys("cohorts:rates:*")
    assert int(redis_client.get(key)) <= 64 + 100


def test_refusal__while_the_workers_clock_is_a_day_ahead__lasts_no_longer_than_the_window(
    store_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, limit = limiter(store_url), parse("1/second")
    with monkeypatch.context() as ahead:
        real = time.time
        ahead.setattr(time, "time", lambda: real() + 24 * 3600)
        wait_until(lambda: rates.hit(limit, *NAMES) is not None)
    assert rates.hit(limit, *NAMES) in (None, 1)
    wait_until(lambda: rates.hit(limit, *NAMES) is None)


def test_window__of_a_counter_that_ends_too_late__is_shortened(
    store_url: str, redis_client: redis.Redis
) -> None:
    """As after the server's clock was set back: expiry is stored as a time of day."""
    rates, limit = limiter(store_url), parse("2/minute")
    assert rates.hit(limit, *NAMES) is None
    (key,) = redis_client.keys("cohorts:rates:*")
    for change in (lambda: redis_client.expire(key, 24 * 3600), lambda: redis_client.persist(key)):
        change()
        limiter(store_url).hit(limit, *NAMES)
        assert 0 < redis_client.pttl(key) <= 60_000
    assert limiter(store_url).hit(limit, *NAMES) <= 60


@pytest.mark.parametrize(
    "fault",
    [
        lambda store: store.config_set("maxmemory", 1),
        lambda store: store.config_set("min-replicas-to-write", 1),
        lambda store: _spoil(store),
        lambda store: store.shutdown(nosave=True),
    ],
    ids=["full", "without replicas", "spoilt", "down"],
)
def test_limit__that_the_store_cannot_count__is_counted_by_each_worker_alone(
    fault: Callable[[redis.Redis], object],
) -> None:
    with running_store() as url, redis.Redis.from_url(url) as store:
        rates, limit = limiter(url, rates_retry_seconds=60), parse("5/hour")
        assert rates.hit(limit, *NAMES) is None
        fault(store)
        assert admitted([rates], "5/hour", 8) == 5
        assert 3500 < rates.hit(limit, *NAMES) <= 3600


def _spoil(store: redis.Redis) -> None:
    (key,) = store.keys("cohorts:rates:*")
    store.delete(key)
    store.lpush(key, 1)


def test_limit__once_the_store_counts_again__is_counted_together_again(
    store_url: str, redis_client: redis.Redis
) -> None:
    workers, limit = (
        [limiter(store_url, rates_retry_seconds=0.0) for _ in range(2)],
        parse("3/hour"),
    )
    redis_client.config_set("min-replicas-to-write", 1)
    try:
        assert [rates.hit(limit, *NAMES) for rates in workers] == [None, None]
    finally:
        redis_client.config_set("min-replicas-to-write", 0)
    assert [rates.hit(limit, *NAMES) for rates in workers] == [None, None]
    assert admitted(workers, "3/hour", 4) == 1


def test_names__ever_new_ones__are_not_remembered_for_ever(
    store_url: str, redis_client: redis.Redis
) -> None:
    rates, limit = limiter(store_url, rates_remembered=10), parse("100/minute")
    for number in range(25):
        assert rates.hit(limit, "address", str(number)) is None
    assert len(rates._counters) <= 10
    assert rates.hit(limit, "address", "24") is None
