"""Replace the members of a cohort with those of a file, or of another list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from app.auth.admin_actions import OtherResync, ResyncRefused
from app.auth.audit_trail import Operator, record
from app.cohorts import Cohort, ResyncKind, ResyncRefusal, Status, resync_refusal
from app.store import ConfirmedLost, FileCounts, ResyncPlace, Store


class Imported(NamedTuple):
    """What an import has done, or would do.

    Attributes:
        added: users who entered.
        removed: members who left.
        unchanged: users who are members already.
        unknown: users who were skipped because they are not registered.
    """

    added: int
    removed: int
    unchanged: int
    unknown: int = 0


class MemberImport:
    """An import, in this order: :meth:`stage` all users, :meth:`compare`, :meth:`apply`.

    A context manager: if the block is left before :meth:`apply` begins, nothing is changed; if it
    is left later, the background work completes the import. Raises StoreError.

    Args:
        kind: where the members come from.
        new_name: creates the cohort with this trait name.
    """

    def __init__(
        self,
        store: Store,
        operator: Operator,
        place: ResyncPlace,
        *,
        kind: ResyncKind = ResyncKind.IMPORT,
        new_name: str | None = None,
    ) -> None:
        self._store, self._resyncs = store, store.resyncs
        self._operator = operator
        self._place = place
        self._kind = kind
        self._new_name = new_name
        self._has_users = False
        self._counts = FileCounts(0, 0, 0, 0)
        self._is_applying = False

    def __enter__(self) -> Self:
        """Begin.

        Raises:
            OtherResync
        """
        resync = self._resyncs.open(self._place, self._kind)
        if resync is None:
            raise OtherResync
        self._resync = resync
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._resyncs.forget_staged(self._resync)
        if not self._is_applying and self._resyncs.request_abort(self._place, self._resync):
            for _ in self._resyncs.steps(self._place):
                pass

    def stage(self, user_ids: Sequence[str]) -> None:
        """Add some users.

        Raises:
            ResyncRefused: the users added earlier were lost, or the import has ended.
        """
        try:
            self._resyncs.stage(self._place, self._resync, user_ids)
        except ConfirmedLost:
            raise self._ended() from None
        self._has_users = self._has_users or bool(user_ids)

    def compare(self) -> Iterator[None]:
        """Compare the users with the members, yielding after each step."""
        for counts in self._resyncs.count_file(self._place, self._resync):
            self._counts = counts
            yield

    @property
    def preview(self) -> Imported:
        """What :meth:`apply` would do.

        ``added`` includes suppressed users and, with ``USER_POLICY=known``, unregistered ones.
        """
        return Imported(self._counts.added, self._counts.removed, self._counts.unchanged)

    @property
    def refusal(self) -> ResyncRefusal | None:
        """Why :meth:`apply` would be refused without ``force``; else None."""
        staying = self._counts.added + self._counts.unchanged if self._has_users else 0
        return resync_refusal(staying, self._counts.removed, self._counts.members)

    def apply(self, *, force: bool) -> Iterator[None]:
        """Replace the members, yielding after each step.

        Args:
            force: apply even if there are no users, or most of the members would leave.

        Raises:
            ResyncRefused: nothing was changed, unless the store lost data or the cohort was deleted
                during the import.
        """
        place, cohort_id = self._place, self._place.cohort_id
        if self.refusal is not None and not force:
            raise ResyncRefused(self.refusal)
        if self._resyncs.is_lost(place, self._resync):
            raise ResyncRefused(ResyncRefusal.STORE_LOST)
        details = {"cohort": cohort_id, "forced": force, **self.preview._asdict()}
        record(self._store, self._operator, f"{self._kind}_members", place.app_id, **details)
        if self._new_name is not None:
            new = Cohort(cohort_id, self._new_name)
            self._store.memberships.register_cohort(place.app_id, new, source="")
        if not self._resyncs.request_apply(place, self._resync):
            raise self._ended()
        self._is_applying = True
        yield from self._resyncs.steps(place)
        done = self._resyncs.find(place)
        if done is None or done.id != self._resync.id or not done.is_finished:
            raise self._ended()
        cohort = self._store.registry.find(*place)
        if cohort is None or cohort.status is Status.DELETING:
            raise self._ended()
        self._store.replication.confirm(place.app_id)

    def _ended(self) -> ResyncRefused:
        lost = self._resyncs.is_lost(self._place, self._resync)
        return ResyncRefused(ResyncRefusal.STORE_LOST if lost else ResyncRefusal.ENDED)

    def result(self) -> Imported:
        """What :meth:`apply` has done."""
        done = self._resyncs.find(self._place) or self._resync
        return Imported(done.added, done.removed, self._counts.unchanged, done.unknown)
