"""What is known about a cohort besides its members."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from app.cohorts.freshness import Freshness


class Status(StrEnum):
    """What is going on with a cohort."""

    ACTIVE = "active"
    RENAMING = "renaming"  # some users may still have the trait under an earlier name
    DELETING = "deleting"  # its users are being taken out; pushes are refused


@dataclass
class CohortRecord:
    """A cohort as the registry knows it. Times are in ms since the epoch.

    Attributes:
        trait: the current trait name.
        earlier_names: earlier trait names, each with the time when it was given up.
        sources: the sources it arrives from, each with the time of its last request.
        members: users who are in it now.
        entered, left: transitions in all, since it was first received.
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
    """What a list of cohorts tells about each. ``members`` are users who are in it now."""

    id: str
    trait: str
    status: Status
    members: int
    freshness: Freshness
