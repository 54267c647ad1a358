"""What a check of the store can find, and its report."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

# Findings that a report tells in full; the others are counted.
MAX_TOLD = 100


class Problem(StrEnum):
    """What can be wrong."""

    MEMBER_WITHOUT_TRAIT = "member_without_trait"
    LEFT_WITHOUT_TRAIT = "left_without_trait"
    MEMBER_ALSO_LEFT = "member_also_left"
    TRAIT_WITHOUT_MEMBERSHIP = "trait_without_membership"
    STRAY_FIELD = "stray_field"
    FIELD_OF_UNKNOWN_COHORT = "field_of_unknown_cohort"
    FOREIGN_FIELD = "foreign_field"
    NOT_A_HASH = "not_a_hash"
    COHORT_WITHOUT_STATE = "cohort_without_state"
    COHORT_NOT_LISTED = "cohort_not_listed"
    WRONG_COUNTERS = "wrong_counters"
    JOB_WITHOUT_WORK = "job_without_work"
    WORK_WITHOUT_JOB = "work_without_job"
    NAMES_DISAGREE = "names_disagree"
    CHANGE_REPEATED = "change_repeated"
    CHANGE_MISSING = "change_missing"
    MEMBER_NOT_IN_STREAM = "member_not_in_stream"
    UNREADABLE_ENTRY = "unreadable_entry"


class Meaning(str):
    """What a problem means; ``repairable`` where a repair needs no guess."""

    repairable: bool

    def __new__(cls, text: str, *, repairable: bool = True) -> Meaning:
        meaning = super().__new__(cls, text)
        meaning.repairable = repairable
        return meaning


MEANINGS = {
    Problem.MEMBER_WITHOUT_TRAIT: Meaning(
        "a member's hash doesn't have the cohort's trait at true"
    ),
    Problem.LEFT_WITHOUT_TRAIT: Meaning(
        "a user who is kept as being out doesn't have the cohort's trait at false"
    ),
    Problem.MEMBER_ALSO_LEFT: Meaning("a user is a member and kept as being out at once"),
    Problem.TRAIT_WITHOUT_MEMBERSHIP: Meaning(
        "a hash has the cohort's trait, but the user is neither a member nor kept as being out"
    ),
    Problem.STRAY_FIELD: Meaning("a hash has a trait of the cohort that isn't its current name"),
    Problem.FIELD_OF_UNKNOWN_COHORT: Meaning("a hash has a trait of a cohort that doesn't exist"),
    Problem.FOREIGN_FIELD: Meaning(
        "a hash has a field that is no trait: another program writes there", repairable=False
    ),
    Problem.NOT_A_HASH: Meaning(
        "a user's key holds something else than a hash: another program writes there",
        repairable=False,
    ),
    Problem.COHORT_WITHOUT_STATE: Meaning("a cohort's names and counts are lost"),
    Problem.COHORT_NOT_LISTED: Meaning("a cohort isn't in the list of cohorts"),
    Problem.WRONG_COUNTERS: Meaning("entered minus left isn't the number of members"),
    Problem.JOB_WITHOUT_WORK: Meaning("background work is listed where there is none"),
    Problem.WORK_WITHOUT_JOB: Meaning("a rename or deletion isn't listed for the background work"),
    Problem.NAMES_DISAGREE: Meaning(
        "two partitions have a cohort under two names, and nothing is under way that ends it"
    ),
    Problem.CHANGE_REPEATED: Meaning(
        "the stream tells the same change of a user twice in a row", repairable=False
    ),
    Problem.CHANGE_MISSING: Meaning(
        "the stream's last change of a user doesn't agree with the membership", repairable=False
    ),
    Problem.MEMBER_NOT_IN_STREAM: Meaning(
        "the stream is whole, and doesn't tell that a member entered: somebody wrote it past the "
        "service. Remove it with ZREM, or let the user leave and enter through the service",
        repairable=False,
    ),
    Problem.UNREADABLE_ENTRY: Meaning(
        "an entry of the stream isn't what the service writes", repairable=False
    ),
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong in one partition.

    ``user_id`` is empty where it is not about a user, ``detail`` where there is none.
    """

    problem: Problem
    app_id: str
    partition: int
    cohort_id: str
    user_id: str = ""
    detail: str = ""
    repaired: bool = False


@dataclass
class StreamProof:
    """What a replay of one partition's stream could prove.

    Attributes:
        whole: nothing has left the stream by age or length, so it tells of every change.
        transitions: changes of single users that were replayed.
        agreeing: (cohort, user) pairs whose last change agrees with the membership.
        members_untold: members whose entering has left the stream: nothing is proved about them.
        perhaps_erased: (cohort, user) pairs that don't agree, and may be those of erased users.
    """

    app_id: str
    partition: int
    whole: bool = True
    transitions: int = 0
    agreeing: int = 0
    members_untold: int = 0
    perhaps_erased: int = 0


@dataclass
class CheckReport:
    """The outcome of a check.

    Attributes:
        memberships: (cohort, user) pairs in the sorted sets, members and those kept as being out.
        fields: trait fields in the users' hashes.
        found: how often each problem was found, and of these how many were ``repaired``.
        findings: the first hundred, in full.
    """

    app_ids: list[str]
    cohorts: int = 0
    users: int = 0
    memberships: int = 0
    fields: int = 0
    seconds: float = 0.0
    found: Counter[Problem] = field(default_factory=Counter)
    repaired: Counter[Problem] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    streams: list[StreamProof] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Nothing was found."""
        return not self.found

    def add(self, finding: Finding) -> None:
        self.found[finding.problem] += 1
        self.repaired[finding.problem] += finding.repaired
        if len(self.findings) < MAX_TOLD:
            self.findings.append(finding)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        counts = {
            name: {str(problem): count for problem, count in counter.items() if count}
            for name, counter in (("found", self.found), ("repaired", self.repaired))
        }
        findings = [asdict(finding) for finding in self.findings]
        streams = [asdict(proof) for proof in self.streams]
        return {"ok": self.ok, **vars(self), **counts, "findings": findings, "streams": streams}
