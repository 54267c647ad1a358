"""What is checked and what came of it: options, checks, outcomes and the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from .. import payloads
from ..cohort_sync import Mode
from ..connection import Target

if TYPE_CHECKING:
    from .context import Context

# `single` differs from `property` only in the size of its requests.
CHECKED_MODES: tuple[Mode, ...] = ("property", "list", "webhook")

Level = Literal["must", "should"]
"""`must`: a receiver that fails it contradicts Amplitude's documentation or loses users.
`should`: a failure doesn't decide the verdict.
"""
Origin = Literal["document", "known"]
"""`document`: Amplitude's page "Receiving Behavioral Cohorts". `known`: Amplitude's other pages,
and receivers in production.
"""
Verdict = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Options:
    """What to check, and facts about the receiver that only its operator knows."""

    target: Target
    path: str = payloads.COHORT_PATH
    lists_path: str = payloads.LISTS_PATH
    webhook_path: str = payloads.WEBHOOK_PATH
    list_id_path: str = "response.listId"
    modes: Sequence[Mode] = CHECKED_MODES
    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    invalid_user: str | None = None
    throttle: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Check:
    """One requirement, in the words of its origin, and the function that checks it."""

    name: str
    mode: Mode
    level: Level
    origin: Origin
    requirement: str
    run: Callable[[Context], str | None] = field(repr=False)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a check. `compared`: whether a reader could see what was stored."""

    check: Check
    verdict: Verdict
    detail: str
    seconds: float
    compared: bool


@dataclass(frozen=True)
class Sample:
    """The latency of one successful request, in seconds."""

    check: str
    mode: Mode
    users: int
    seconds: float


@dataclass
class Report:
    """The outcome of a run. `compared`: whether a reader compared the state."""

    url: str
    seed: int
    compared: bool
    started: float
    seconds: float = 0.0
    outcomes: list[Outcome] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def failed(self, level: Level) -> list[Outcome]:
        """Return the failed checks of a level."""
        return [o for o in self.outcomes if o.verdict == "failed" and o.check.level == level]

    @property
    def certified(self) -> bool:
        """Whether at least one `must` passed and none failed."""
        passed = any(o.verdict == "passed" and o.check.level == "must" for o in self.outcomes)
        return passed and not self.failed("must")

    def counts(self) -> Counter[str]:
        """Return the number of checks by verdict."""
        return Counter(outcome.verdict for outcome in self.outcomes)
