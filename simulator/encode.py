"""Encode request bodies fast: the parts around the user ids are encoded once, then joined.

A test checks that the bodies equal those of `payloads`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from . import payloads
from .cohort import Cohort

_NEEDS_ESCAPING = re.compile(r'[\x00-\x1f"\\]')
_PLACEHOLDER = "\x00user\x00"


def to_json(payload: object) -> bytes:
    """Return a payload as compact JSON in UTF-8."""
    return _compact(payload).encode()


class Encoder:
    """Encodes the request bodies of one cohort. Users are indexes into `cohort.ids`."""

    def __init__(self, cohort: Cohort) -> None:
        self._cohort = cohort
        escaped = [_escape(user_id) for user_id in cohort.ids]
        # Ids rarely need escaping. If none does, don't keep them in memory twice.
        self._escaped: Sequence[str] = cohort.ids if escaped == cohort.ids else escaped
        self._identify = {
            member: _around_user(payloads.identify(_PLACEHOLDER, cohort.trait, member))
            for member in (True, False)
        }
        self._list = _around_user(payloads.list_users([_PLACEHOLDER]))

    def identify(self, user: int, member: bool) -> bytes:
        """Encode a single update."""
        before, after = self._identify[member]
        return f"{before}{self._escaped[user]}{after}".encode()

    def batch(self, users: Iterable[int], member: bool) -> bytes:
        """Encode a batch update; `users` must not be empty."""
        before, after = self._identify[member]
        items = self._join(users, f"{after},{before}")
        return f'{{"batch":[{before}{items}{after}]}}'.encode()

    def list_create(self) -> bytes:
        """Encode a list creation."""
        return to_json(payloads.list_create(self._cohort.trait))

    def list_users(self, users: Iterable[int]) -> bytes:
        """Encode a list's add or remove call; `users` must not be empty."""
        before, after = self._list
        items = self._join(users, '","')
        return f"{before}{items}{after}".encode()

    def webhook(
        self, users: Iterable[int], member: bool, computed_time: int, message_id: str
    ) -> bytes:
        """Encode the default body of a webhook; `users` must not be empty."""
        cohort = self._cohort
        before, after = _around_user(
            payloads.webhook(
                cohort.name,
                cohort.cohort_id,
                [_PLACEHOLDER],
                member,
                computed_time=computed_time,
                message_id=message_id,
            )
        )
        items = self._join(users, '"},{"user_id":"')
        return f"{before}{items}{after}".encode()

    def _join(self, users: Iterable[int], separator: str) -> str:
        return separator.join(map(self._escaped.__getitem__, users))


def _compact(payload: object) -> str:
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":"))


def _escape(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1] if _NEEDS_ESCAPING.search(text) else text


def _around_user(payload: object) -> tuple[str, str]:
    """Return the JSON text before and after the placeholder's user id."""
    before, after = _compact(payload).split(_escape(_PLACEHOLDER))
    return before, after
