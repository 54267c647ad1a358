"""The parts of a URL of Sentinels, as the reader takes them."""

from __future__ import annotations

from cohort_reader.sentinel import sentinel_arguments


def test_arguments__of_a_full_url__have_every_part() -> None:
    arguments, service = sentinel_arguments(
        "rediss+sentinel://user:p%40ss@a:1,[::1]:2,[::2],c/name/3"
        "?sentinel_username=w&sentinel_password=x",
        {"socket_timeout": 1},
    )
    assert service == "name"
    assert arguments == {
        "sentinels": [("a", 1), ("::1", 2), ("::2", 26379), ("c", 26379)],
        "sentinel_kwargs": {"username": "w", "password": "x", "ssl": True, "socket_timeout": 1},
        "username": "user",
        "password": "p@ss",
        "db": 3,
        "ssl": True,
        "socket_timeout": 1,
    }
