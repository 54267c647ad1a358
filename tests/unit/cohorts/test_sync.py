"""Pseudonyms of users in the history."""

from __future__ import annotations

from app.cohorts import user_hash


def test_user_hash__is_the_same_in_every_version() -> None:
    """Stored histories and an operator's notes refer to it."""
    assert user_hash("user1@example.com") == "ff33f5a1f999"
