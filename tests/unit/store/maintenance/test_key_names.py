"""A copy knows every key that the service keeps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.store.keys import Keys
from app.store.maintenance.key_names import Kind, parse

PAGE = (Path(__file__).resolve().parents[4] / "docs" / "data-model.md").read_text()
NAMES = {
    re.sub(r"<[^>]+>", "x", name.replace("<tag>", "shop:3").replace("…", "cohorts:"))
    for name in re.findall(r"^\| `((?:…|cohorts:)[^`]*)` \|", PAGE, re.M)
}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_key__that_the_data_model_names__is_known(name: str) -> None:
    assert parse(name.encode(), "cohorts").kind is not Kind.UNKNOWN


def test_data_model__names_many() -> None:
    assert len(NAMES) > 20
    assert "cohorts:{shop:3}:registered" in NAMES


@pytest.mark.parametrize(
    ("key", "kind", "app_id", "owner"),
    [
        (b"p:{a}:user:x", Kind.WHOLE, "a", b"x"),
        (b"p:{a:12}:user:u:{b}:user:c", Kind.WHOLE, "a", b"u:{b}:user:c"),
        (b"p:{a}:cohort:i:d:members", Kind.SPREAD, "a", b"i:d"),
        (b"p:{a}:cohort:x:freshness", Kind.WHOLE, "a", b"x"),
        (b"p:{a}:cohort:x:syncs", Kind.WHOLE, "a", b"a"),
        (b"p:{a:3}:suppressed", Kind.SPREAD, "a", b"a"),
        (b"p:keys", Kind.GLOBAL, "", b""),
        (b"p:rates:LIMITER/x", Kind.SKIPPED, "", b""),
        (b"p:{a}:news", Kind.UNKNOWN, "a", b"a"),
        (b"p:{a", Kind.UNKNOWN, "", b""),
    ],
)
def test_name__of_a_key__is_taken_apart(key: bytes, kind: Kind, app_id: str, owner: bytes) -> None:
    name = parse(key, "p")
    assert (name.kind, name.app_id, name.owner) == (kind, app_id, owner)


@pytest.mark.parametrize(
    ("key", "moved"),
    [
        (b"p:{a}:user:alice", b"q:{a:2}:user:alice"),
        (b"p:{a}:sync:7:requests", b"q:{a:0}:sync:7:requests"),
        (b"p:keys", b"q:keys"),
    ],
)
def test_name__in_another_store__has_its_prefix_and_partition(key: bytes, moved: bytes) -> None:
    assert parse(key, "p").in_store(Keys("q", 3)) == moved
