"""Resyncs: a full sync, or a file, that replaces the membership of a cohort."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class ResyncKind(StrEnum):
    """The source of the users who stay."""

    RESYNC = "resync"  # syncs that arrive while it is open
    IMPORT = "import"  # a file
    RECONCILE = "reconcile"  # an export of Amplitude's own record


class ResyncState(StrEnum):
    """The stages of a resync. docs/decisions/resync.md has their order."""

    OPENING = "opening"
    OPEN = "open"  # everybody reported as a member is confirmed
    APPLYING = "applying"  # of an import: users of the file enter
    FINISHING = "finishing"  # members who are not confirmed leave
    FINISHED = "finished"
    ABORTING = "aborting"


class ResyncRefusal(StrEnum):
    """Why a resync or import does not finish."""

    # These can be overridden by force.
    EMPTY = "resync_empty"
    SHRINKS = "resync_shrinks"
    # This cannot: the store has lost data since the resync began, including who was confirmed.
    STORE_LOST = "resync_store_lost"
    # Nor can this: an import was aborted, or its cohort was deleted, before it was complete.
    ENDED = "resync_ended"
    # It does not finish by itself: requests for the cohort failed, or may have failed while the
    # service was down. Whoever they named is not confirmed.
    REQUESTS_FAILED = "resync_requests_failed"


class Resync(NamedTuple):
    """A cohort's current or last resync.

    Attributes:
        started_ms: when it was opened, in ms since the epoch.
        quiet_ms: finish automatically when nothing more has arrived for this long.
        confirmed: members, or users of a file, who will stay; 0 once it has finished.
        unconfirmed: members who will leave; 0 once it has finished. For a file, the number of
            members less ``confirmed``: too low if the file has new users.
        added: users of a file who have entered.
        removed: members who have left.
        unknown: users of a file who were skipped because they are not registered.
        members: how many there were when it finished.
        refused: why it did not finish.
    """

    id: str
    kind: ResyncKind
    state: ResyncState
    started_ms: int
    quiet_ms: int | None = None
    confirmed: int = 0
    unconfirmed: int = 0
    added: int = 0
    removed: int = 0
    unknown: int = 0
    members: int | None = None
    refused: ResyncRefusal | None = None

    @property
    def is_finished(self) -> bool:
        return self.state is ResyncState.FINISHED


def resync_refusal(confirmed: int, leaving: int, members: int) -> ResyncRefusal | None:
    """Why finishing a resync is refused: nobody would stay, or most would leave. None if it isn't.

    Args:
        confirmed: users who stay or enter.
        leaving: members who leave.
        members: all members, including those who leave.
    """
    if not confirmed:
        return ResyncRefusal.EMPTY
    if leaving * 2 > members:
        return ResyncRefusal.SHRINKS
    return None
