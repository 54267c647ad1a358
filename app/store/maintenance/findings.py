"""What a check of the store can find, and its report."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

# A report lists this many findings; it counts the others.
MAX_LISTED = 100


class Problem(StrEnum):
    """What can be wrong. ``MEANINGS`` describes each."""

    MEMBER_WITHOUT_TRAIT = "member_without_trait"
    LEFT_WITHOUT_TRAIT = "left_without_trait"
    MEMBER_ALSO_LEFT = "member_also_left"
    TRAIT_WITHOUT_MEMBERSHIP = "trait_without_membership"
    STRAY_FIELD = "stray_field"
    FIELD_OF_UNKNOWN_COHORT = "field_of_unknown_cohort"
    FOREIGN_FIELD = "foreign_field"
    NOT_A_HASH = "not_a_hash"
    WRONG_TYPE = "wrong_type"
    COHORT_WITHOUT_STATE = "cohort_without_state"
    RECORDS_WITHOUT_COHORT = "records_without_cohort"
    COHORT_NOT_LISTED = "cohort_not_listed"
    WRONG_COUNTERS = "wrong_counters"
    JOB_WITHOUT_WORK = "job_without_work"
    WORK_WITHOUT_JOB = "work_without_job"
    TIME_AHEAD = "time_ahead"
    NAMES_DISAGREE = "names_disagree"
    CHANGE_REPEATED = "change_repeated"
    CHANGE_MISSING = "change_missing"
    MEMBER_NOT_IN_STREAM = "member_not_in_stream"
    UNREADABLE_ENTRY = "unreadable_entry"


@dataclass(frozen=True)
class Meaning:
    """The description of a problem, and whether a check can repair it without guessing."""

    text: str
    repairable: bool


def _repairable(text: str) -> Meaning:
    return Meaning(text, repairable=True)


def _reported_only(text: str) -> Meaning:
    return Meaning(text, repairable=False)


MEANINGS = {
    Problem.MEMBER_WITHOUT_TRAIT: _repairable(
        "a member's hash doesn't have the cohort's trait set to true"
    ),
    Problem.LEFT_WITHOUT_TRAIT: _repairable(
        "a user recorded as not a member doesn't have the cohort's trait set to false"
    ),
    Problem.MEMBER_ALSO_LEFT: _repairable("a user is a member and also recorded as not a member"),
    Problem.TRAIT_WITHOUT_MEMBERSHIP: _repairable(
        "a hash has the cohort's trait, but the cohort has no record of the user"
    ),
    Problem.STRAY_FIELD: _repairable(
        "a hash has a trait of the cohort under a name other than its current one"
    ),
    Problem.FIELD_OF_UNKNOWN_COHORT: _repairable("a hash has a trait of an unknown cohort"),
    Problem.FOREIGN_FIELD: _reported_only(
        "a hash has a field that is not a trait: another program writes to it"
    ),
    Problem.NOT_A_HASH: _reported_only("a user's key is not a hash: another program writes to it"),
    Problem.WRONG_TYPE: _reported_only(
        "a key of the service has another type: another program writes to it. What depends on the "
        "key was not checked; delete the key and run the check again"
    ),
    Problem.RECORDS_WITHOUT_COHORT: _repairable(
        "freshness, completeness or sizes of a deleted cohort are left over"
    ),
    Problem.COHORT_WITHOUT_STATE: _repairable("a cohort's names and counters are lost"),
    Problem.COHORT_NOT_LISTED: _repairable("a cohort is missing from the list of cohorts"),
    Problem.WRONG_COUNTERS: _repairable("entered minus left is not the number of members"),
    Problem.JOB_WITHOUT_WORK: _repairable("a job is listed for a cohort without background work"),
    Problem.WORK_WITHOUT_JOB: _repairable("a rename or deletion is missing from the list of jobs"),
    Problem.TIME_AHEAD: _repairable(
        "times of a cohort are in the future: the store's clock was ahead, and is right again. "
        "Repair sets times of users to a day ago, and times of the cohort to the present"
    ),
    Problem.NAMES_DISAGREE: _repairable(
        "two partitions have different names of a cohort, and no rename is in progress"
    ),
    Problem.CHANGE_REPEATED: _reported_only(
        "the stream has the same change of a user twice in a row, or a user who left without "
        "having entered"
    ),
    Problem.CHANGE_MISSING: _reported_only(
        "the last change of a user in the stream disagrees with the membership"
    ),
    Problem.MEMBER_NOT_IN_STREAM: _reported_only(
        "the stream is complete, but has no entry for a member: another program added the member. "
        "Remove it with ZREM, or let the user leave and enter through the service"
    ),
    Problem.UNREADABLE_ENTRY: _reported_only(
        "an entry of the stream was not written by the service"
    ),
}


@dataclass(frozen=True)
class Finding:
    """A problem in one partition.

    ``user_id`` is empty if it is not about a user, ``detail`` if there is none.
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
    """What the replay of one partition's stream has verified.

    Attributes:
        whole: nothing was trimmed, so the stream has every change.
        transitions: replayed changes of single users.
        agreeing: (cohort, user) pairs whose last change agrees with the membership.
        members_unverified: members whose entry was trimmed, so they cannot be verified.
        perhaps_erased: changes that disagree with the one before, or with the membership, but may
            be of erased users.
    """

    app_id: str
    partition: int
    whole: bool = True
    transitions: int = 0
    agreeing: int = 0
    members_unverified: int = 0
    perhaps_erased: int = 0


@dataclass
class CheckReport:
    """The outcome of a check.

    Attributes:
        memberships: (cohort, user) pairs checked, including users recorded as not members.
        fields: fields of users' hashes checked.
        found: number of findings by problem, of which ``repaired`` were repaired.
        findings: the first ``MAX_LISTED`` findings.
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
        """Whether nothing was found."""
        return not self.found

    def add(self, finding: Finding) -> None:
        self.found[finding.problem] += 1
        self.repaired[finding.problem] += finding.repaired
        if len(self.findings) < MAX_LISTED:
            self.findings.append(finding)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON."""
        counts = {
            name: {str(problem): count for problem, count in counter.items() if count}
            for name, counter in (("found", self.found), ("repaired", self.repaired))
        }
        findings = [asdict(finding) for finding in self.findings]
        streams = [asdict(proof) for proof in self.streams]
        return {"ok": self.ok, **vars(self), **counts, "findings": findings, "streams": streams}
