"""What each user's trait must be at the receiver, given what was sent and answered.

The rules, for one cohort:

- A statement that the receiver has acknowledged (2xx) holds from then on, until one of a higher
  *order* is acknowledged. For calls that carry a time (webhooks) the order is that time, and the
  receiver must go by it, whatever the order of arrival. For calls that carry none (identify, batch,
  lists) it is the order of arrival: the simulator never has two conflicting ones about a user under
  way at once, so it knows that order.
- A statement without an answer (timeout, lost connection) or answered with a 5xx may hold or not.
  That ends when a statement of the same or a higher order is acknowledged, normally its own retry.
- A statement refused with a 4xx, or cut off half way, must have left no trace.

So a late retry without a time that arrives after a newer sync wins, in the receiver and here:
nothing in the call says that it is old.
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


class Truth:
    """The expected trait value of each user of one cohort; safe to use from many threads."""

    def __init__(self, trait: str, ids: Sequence[str]) -> None:
        self.trait = trait
        self.ids = ids
        self._value = bytearray(len(ids))
        self._order = array("q", [_BEFORE_ALL]) * len(ids)
        self._open: dict[int, list[tuple[int, bool]]] = {}
        self._lock = threading.Lock()

    def assume(self, values: Iterable[Value | str]) -> None:
        """Take `values` (one for each of `ids`) as what the receiver holds before anything is
        sent.
        """
        for user, value in enumerate(values):
            self._value[user] = _TRUE if value is True else _FALSE if value is False else _ABSENT

    def acknowledged(self, users: Iterable[int], member: bool, order: int) -> None:
        """Note that the receiver has answered 2xx to a statement about `users`."""
        new = _TRUE if member else _FALSE
        with self._lock:
            value, orders, open_ = self._value, self._order, self._open
            for user in users:
                if order >= orders[user]:
                    orders[user] = order
                    value[user] = new
            if open_:
                for user in users:
                    if user in open_:
                        left = [other for other in open_[user] if other[0] > order]
                        if left:
                            open_[user] = left
                        else:
                            del open_[user]

    def uncertain(self, users: Iterable[int], member: bool, order: int) -> None:
        """Note that the receiver may have applied a statement about `users`, or may not."""
        with self._lock:
            for user in users:
                if order >= self._order[user]:
                    self._open.setdefault(user, []).append((order, member))

    def possible(self, user: int) -> set[Value]:
        """Return the values that the user's trait may have now; None stands for no such field."""
        values = {_VALUES[self._value[user]]}
        return values | {member for _, member in self._open.get(user, ())}

    def expected(self) -> list[Value]:
        """Return each user's expected value: with no `uncertain_users`, the only right one."""
        return [_VALUES[value] for value in self._value]

    @property
    def uncertain_users(self) -> int:
        """How many users may have one of several values."""
        return sum(len(self.possible(user)) > 1 for user in list(self._open))

    def members(self) -> int:
        """Return how many users are expected to be `true`."""
        return self._value.count(_TRUE)


@dataclass(frozen=True)
class Wrong:
    """A user whose trait is not what it must be."""

    user_id: str
    expected: tuple[Value, ...]
    found: Value | str

    def __str__(self) -> str:
        expected = " or ".join(map(say, self.expected))
        return f"user {self.user_id!r}: expected {expected}, found {say(self.found)}"


@dataclass
class Comparison:
    """The outcome of a comparison, user by user."""

    checked: int = 0
    uncertain: int = 0
    wrong: int = 0
    examples: list[Wrong] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every user was as expected."""
        return self.wrong == 0


def compare(truth: Truth, reader: Reader, examples: int = 20, chunk: int = 5_000) -> Comparison:
    """Read every user of the cohort and compare; keep at most `examples` differences in full."""
    result = Comparison()
    for start in range(0, len(truth.ids), chunk):
        found = reader.traits(truth.ids[start : start + chunk])
        for user, traits in enumerate(found, start):
            possible = truth.possible(user)
            value = traits.get(truth.trait)
            result.checked += 1
            result.uncertain += len(possible) > 1
            if value not in possible:
                result.wrong += 1
                if len(result.examples) < examples:
                    expected = tuple(sorted(possible, key=str))
                    result.examples.append(Wrong(truth.ids[user], expected, value))
    return result


def say(value: Value | str) -> str:
    """Return a trait's value as the store spells it."""
    if value is None:
        return "no field"
    return repr(value) if isinstance(value, str) else str(value).lower()
