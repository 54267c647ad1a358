"""A cohort's record: names, counts and state, without its members."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from app.cohorts.completeness import Completeness
from app.cohorts.freshness import Freshness


class Status(StrEnum):
    """Whether a rename or deletion of a cohort is in progress."""

    ACTIVE = "active"
    RENAMING = "renaming"  # some users may still have the trait under an earlier name
    DELETING = "deleting"  # its users are being removed; new syncs are refused


@dataclass
class CohortRecord:
    """A cohort in the registry. Times are in ms since the epoch.

    Attributes:
        trait: the current trait name.
        earlier_names: earlier trait names, each with the time when it was replaced.
        sources: the sources it arrives from, each with the time of its last request.
        members: users who are in the cohort now.
        entered, left: all transitions since it was first received or imported.
    """

    id: str
    trait: str
    first_ms: int
    last_ms: int
    earlier_names: dict[str, int] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    members: int = 0
    entered: int = 0
    left: int = 0
    status: Status = Status.ACTIVE


class CohortSummary(NamedTuple):
    """A cohort in a list of cohorts. ``members`` counts the users who are in it now."""

    id: str
    trait: str
    status: Status
    members: int
    freshness: Freshness
    completeness: Completeness
