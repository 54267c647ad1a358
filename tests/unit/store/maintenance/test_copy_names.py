"""A copy knows every key that the service keeps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.store.copying.names import Kind, Name, name_of

PAGE = (Path(__file__).resolve().parents[4] / "docs" / "data-model.md").read_text()
NAMES = {
    re.sub(r"<[^>]+>", "x", name.replace("<tag>", "shop:3").replace("…", "cohorts:"))
    for name in re.findall(r"^\| `((?:…|cohorts:)[^`]*)` \|", PAGE, re.M)
}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_key__that_the_data_model_names__is_known(name: str) -> None:
    assert name_of(name.encode(), "cohorts").kind is not Kind.UNKNOWN


def test_data_model__names_many() -> None:
    assert len(NAMES) > 20
    assert "cohorts:{shop:3}:registered" in NAMES


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("p:{a}:user:x", Name(Kind.USER, "a", 0, b"x", b"user:x")),
        ("p:{a:12}:user:u:{b}:user:c", Name(Kind.USER, "a", 12, b"u:{b}:user:c")),
        ("p:{a}:cohort:i:d:members", Name(Kind.COHORT, "a", 0, b"i:d")),
        ("p:{a}:cohort:x:freshness", Name(Kind.AT_COHORT, "a", 0, b"x")),
        ("p:{a}:suppressed", Name(Kind.USERS, "a", 0)),
        ("p:keys", Name(Kind.ALONE)),
        ("p:rates/LIMITER/x", Name(Kind.MADE)),
        ("p:{a}:news", Name(Kind.UNKNOWN, "a", 0)),
        ("p:{a", Name(Kind.UNKNOWN)),
    ],
)
def test_name__of_a_key__is_taken_apart(key: str, name: Name) -> None:
    assert name_of(key.encode(), "p")[:4] == name[:4]
