"""The cohort behind a trait name."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import NamedTuple

MAX_TRAIT_BYTES = 512
MAX_USER_ID_BYTES = 1024


class Cohort(NamedTuple):
    """A cohort as a request names it.

    Attributes:
        id: the cohort's permanent id.
        trait: the trait name as received; it changes when the cohort is renamed.
    """

    id: str
    trait: str

    @classmethod
    def from_trait(cls, trait: str) -> Cohort:
        """Parse a trait name of the form ``[Amplitude] {name}: {id}``.

        The id follows the last colon, since cohort names may contain colons. A trait name
        without an id gets one derived from the whole name: always the same, and safe in a URL.
        """
        return _from_trait(trait)

    @classmethod
    def given(cls, name: str, cohort_id: str) -> Cohort:
        """The cohort with this id. ``name``, given by a person, may be its whole trait name.

        Raises:
            ValueError: this name and id form no valid trait name. The message says why.
        """
        if text_problem(name, MAX_TRAIT_BYTES) is None:
            cohort = cls.from_trait(name)
            if cohort.id == cohort_id:
                return cohort
        return cls.named(name, cohort_id)

    @classmethod
    def named(cls, name: str, cohort_id: str) -> Cohort:
        """The cohort with this id, under the trait name that Amplitude would send.

        Raises:
            ValueError: this name and id form no valid trait name. The message says why.
        """
        trait = f"[Amplitude] {name}: {cohort_id}"
        if problem := text_problem(trait, MAX_TRAIT_BYTES):
            raise ValueError(
                f"The trait name, formed from the cohort's name and id, is invalid: {problem}"
            )
        cohort = cls.from_trait(trait)
        if cohort.id != cohort_id:
            raise ValueError("The id must not contain a colon, or begin or end with a blank.")
        return cohort


@lru_cache(maxsize=4096)
def _from_trait(trait: str) -> Cohort:
    _, colon, tail = trait.rpartition(":")
    cohort_id = tail.strip() if colon else ""
    if not cohort_id:
        cohort_id = "name-" + hashlib.sha256(trait.encode()).hexdigest()[:24]
    return Cohort(cohort_id, trait)


def text_problem(text: object, max_bytes: int) -> str | None:
    """Why ``text`` is not a valid user id or trait name; None if it is valid."""
    if not isinstance(text, str):
        return "Must be a string."
    if not text:
        return "Must not be empty."
    if "\0" in text:
        return "Must not contain NUL."
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "Must be valid Unicode, without lone surrogates."
    if size > max_bytes:
        return f"Must be at most {max_bytes} bytes of UTF-8."
    return None
