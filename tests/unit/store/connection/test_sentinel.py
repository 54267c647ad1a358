"""The parts of a URL of Sentinels."""

from __future__ import annotations

from app.store.connection.sentinel import SentinelUrl


def test_parse__full_url__has_every_part() -> None:
    url = (
        "rediss+sentinel://user:p%40ss@a:1,[::1]:2,c/name/3?sentinel_username=w&sentinel_password=x"
    )
    assert SentinelUrl.parse(url) == SentinelUrl(
        (("a", 1), ("::1", 2), ("c", 26379)), "name", 3, "user", "p@ss", "w", "x", True
    )


def test_parse__shortest_url__has_defaults() -> None:
    assert SentinelUrl.parse("redis+sentinel://a/name") == SentinelUrl(
        (("a", 26379),), "name", 0, None, None, None, None, False
    )
