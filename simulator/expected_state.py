"""The trait value each user should have at the receiver, given the updates sent and the replies.

The rules, for one cohort:

- An acknowledged update (2xx) holds until an update of a higher *order* is acknowledged. Webhooks
  are ordered by the time they carry, whatever their order of arrival. Other calls carry no time and
  are ordered by arrival, which the simulator knows because it never sends two conflicting updates
  about a user at the same time.
- An update without a reply (timeout, lost connection), or answered with a 5xx or with a 2xx that
  reports rejected users, may have been applied or not, until an update of the same or a higher
  order is acknowledged, normally its own retry.
- An update refused with a 4xx, or cut off half way, must have no effect.

So when the retry of a call without a time arrives after a newer sync, the retry wins, here and at
the receiver: nothing in the call shows that it is old.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .reader import Reader, Value

_ABSENT, _FALSE, _TRUE = 0, 1, 2
_VALUES: tuple[Value, ...] = (None, False, True)
_BEFORE_ALL = -(2**62)


class ExpectedState:
    """The expected trait value of every user of one cohort. Thread-safe.

    Users are indexes into `ids`.
    """

    def __init__(self, trait: str, ids: Sequence[str]) -> None:
        self.trait = trait
        self.ids = ids
        self._values = bytearray(len(ids))
        self._orders = array("q", [_BEFORE_ALL]) * len(ids)
        self._uncertain: dict[int, list[tuple[int, bool]]] = {}
        self._lock = threading.Lock()

    def set_initial(self, values: Iterable[Value | str]) -> None:
        """Set the values the receiver holds before anything is sent, one for each of `ids`."""
        for user, value in enumerate(values):
            self._values[user] = _TRUE if value is True else _FALSE if value is False else _ABSENT

    def acknowledge(self, users: Iterable[int], member: bool, order: int) -> None:
        """Record that the receiver acknowledged an update of `users` to `member`."""
        new = _TRUE if member else _FALSE
        with self._lock:
            values, orders, uncertain = self._values, self._orders, self._uncertain
            for user in users:
                if order >= orders[user]:
                    orders[user] = order
                    values[user] = new
            if uncertain:
                for user in users:
                    if user in uncertain:
                        newer = [update for update in uncertain[user] if update[0] > order]
                        if newer:
                            uncertain[user] = newer
                        else:
                            del uncertain[user]

    def mark_uncertain(self, users: Iterable[int], member: bool, order: int) -> None:
        """Record an update of `users` to `member` that the receiver may have applied or not."""
        with self._lock:
            for user in users:
                if order >= self._orders[user]:
                    self._uncertain.setdefault(user, []).append((order, member))

    def possible_values(self, user: int) -> set[Value]:
        """Return the values the user's trait may have now; None means that the trait is absent."""
        values = {_VALUES[self._values[user]]}
        return values | {member for _, member in self._uncertain.get(user, ())}

    def values(self) -> list[Value]:
        """Return the value of each user, ignoring uncertain updates."""
        return [_VALUES[value] for value in self._values]

    @property
    def uncertain_users(self) -> int:
        """How many users have more than one possible value."""
        return sum(len(self.possible_values(user)) > 1 for user in list(self._uncertain))

    def member_count(self) -> int:
        """Return how many users are expected to be `true`."""
        return self._values.count(_TRUE)


@dataclass(frozen=True)
class Mismatch:
    """A user whose trait has a value it should not have."""

    user_id: str
    expected: tuple[Value, ...]
    found: Value | str

    def __str__(self) -> str:
        expected = " or ".join(map(format_value, self.expected))
        return f"user {self.user_id!r}: expected {expected}, found {format_value(self.found)}"


@dataclass
class Comparison:
    """The outcome of `compare`: numbers of users, and the first mismatches."""

    checked: int = 0
    uncertain: int = 0
    wrong: int = 0
    found: int = 0
    """Users who have a field for the cohort at all."""
    examples: list[Mismatch] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every user was as expected."""
        return self.wrong == 0


def compare(
    expected: ExpectedState, reader: Reader, examples: int = 20, chunk: int = 5_000
) -> Comparison:
    """Read every user of the cohort and compare; keep the first `examples` mismatches."""
    result = Comparison()
    for start in range(0, len(expected.ids), chunk):
        found = reader.traits(expected.ids[start : start + chunk])
        for user, traits in enumerate(found, start):
            possible = expected.possible_values(user)
            value = traits.get(expected.trait)
            result.checked += 1
            result.found += value is not None
            result.uncertain += len(possible) > 1
            if value not in possible:
                result.wrong += 1
                if len(result.examples) < examples:
                    values = tuple(sorted(possible, key=str))
                    result.examples.append(Mismatch(expected.ids[user], values, value))
    return result


def format_value(value: Value | str) -> str:
    """Return a trait's value for messages: `true`, `false`, `no field` or the quoted string."""
    if value is None:
        return "no field"
    return repr(value) if isinstance(value, str) else str(value).lower()
