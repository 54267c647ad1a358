"""Request bodies as bytes, put together from parts that were encoded once.

A body of a thousand identifies takes one `str.join`. That it says the same as `payloads` is held by
a test.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from . import payloads
from .cohort import Cohort, json_text


def to_json(payload: object) -> bytes:
    """Return a payload as compact JSON in UTF-8."""
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


_MARK = "\x00user\x00"
_MARK_JSON = json.dumps(_MARK)[1:-1]


class Encoder:
    """Encodes the bodies about one cohort; users are given by their index in `cohort.ids`."""

    def __init__(self, cohort: Cohort) -> None:
        self._cohort = cohort
        texts = [json_text(user_id) for user_id in cohort.ids]
        # Ids that need no escaping (nearly all) are not kept twice.
        self._texts: Sequence[str] = cohort.ids if texts == cohort.ids else texts
        self._identify = {
            member: _around(payloads.identify(_MARK, cohort.trait, member))
            for member in (True, False)
        }
        self._list = _around(payloads.list_users([_MARK]))

    def identify(self, user: int, member: bool) -> bytes:
        """Return a single update."""
        before, after = self._identify[member]
        return f"{before}{self._texts[user]}{after}".encode()

    def batch(self, users: Iterable[int], member: bool) -> bytes:
        """Return a batch update; `users` must not be empty."""
        before, after = self._identify[member]
        texts = map(self._texts.__getitem__, users)
        items = f"{after},{before}".join(texts)
        return f'{{"batch":[{before}{items}{after}]}}'.encode()

    def list_create(self) -> bytes:
        """Return the body that creates the cohort's list."""
        return to_json(payloads.list_create(self._cohort.trait))

    def list_users(self, users: Iterable[int]) -> bytes:
        """Return the body of an add or remove call; `users` must not be empty."""
        before, after = self._list
        items = '","'.join(map(self._texts.__getitem__, users))
        return f"{before}{items}{after}".encode()

    def webhook(
        self, users: Iterable[int], member: bool, computed_time: int, message_id: str
    ) -> bytes:
        """Return a webhook's default body; `users` must not be empty."""
        cohort = self._cohort
        before, after = _around(
            payloads.webhook(
                cohort.name,
                cohort.cohort_id,
                [_MARK],
                member,
                computed_time=computed_time,
                message_id=message_id,
            )
        )
        items = '"},{"user_id":"'.join(map(self._texts.__getitem__, users))
        return f"{before}{items}{after}".encode()


def _around(payload: object) -> tuple[str, str]:
    """Return the JSON text before and after the one marked user id."""
    before, after = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).split(_MARK_JSON)
    return before, after
