"""What a copy has done, and what it can prove."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class CopyReport:
    """The outcome of a copy.

    Attributes:
        users: hashes that were compared, each with the times of all its cohorts.
        different: of these, how many were otherwise at the copy when the proof began, and were
            put right.
        vanished: users whom only the copy had, and who were taken out.
        again: users that were copied once more, because they changed meanwhile.
        cohorts: cohorts, and ``members`` in all of them, counted at the copy.
        disagreeing: ids of cohorts whose numbers of members differ at the end.
        left_behind: keys that the copy doesn't know, by their form.
        behind: users and cohorts that changed in the last moments, and are not in the copy yet.
    """

    users: int = 0
    different: int = 0
    vanished: int = 0
    again: int = 0
    cohorts: int = 0
    members: int = 0
    others: int = 0
    seconds: float = 0.0
    behind: int = 0
    disagreeing: list[str] = field(default_factory=list)
    left_behind: Counter[str] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        """Both stores agree in all that was compared, and nothing is missing."""
        return not (self.behind or self.disagreeing or self.left_behind)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return {"ok": self.ok, **vars(self), "left_behind": dict(self.left_behind)}
