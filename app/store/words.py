"""Stored states and reasons, of which a later version may have more than this one."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

Word = TypeVar("Word", bound=StrEnum)


def known(words: type[Word], stored: bytes | str | None) -> Word | None:
    """A stored word; None if there is none, or if only a later version knows it."""
    text = stored.decode() if isinstance(stored, bytes) else stored
    return next((word for word in words if word == text), None)
