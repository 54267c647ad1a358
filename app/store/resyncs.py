"""Resyncs and imports: replace the membership of a cohort.

A resync has a record in the cohort's home partition. Every partition that knows the cohort is
marked; from then on, the atomic step adds the members that requests name to a set, ``confirmed``.
At the end, the members who are not in it leave. An import puts the users of a file into the same
set, adds those who are not members yet, and finishes in the same way.

Each step is one script call and may be repeated. The record says how far the resync is, so another
process can take over at any time. docs/decisions/resync.md has the reasons.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import redis

from app.cohorts import (
    Cohort,
    Resync,
    ResyncKind,
    ResyncRefusal,
    ResyncState,
    VerifiedBy,
    resync_refusal,
)
from app.store.completeness import CompletenessStore
from app.store.connection.scripts import load_script
from app.store.errors import StoreFull, store_errors
from app.store.failed_requests import FailedRequests
from app.store.freshness import FreshnessStore
from app.store.keys import Keys
from app.store.layout import Layout
from app.store.losses import Losses
from app.store.memberships import Memberships
from app.store.registry import Registry
from app.store.size_history import SizeHistory
from app.store.words import known

# A step takes about 1 ms of the store's time if it removes nobody, and 5 ms if it removes all.
USERS_PER_STEP = 1000
# How long a process keeps a resync after its last step.
LEASE_MS = 5000
# A resync that nobody finishes is aborted after this long.
MAX_OPEN_MS = 7 * 24 * 3600 * 1000
# What is confirmed expires this long after the last look at the resync. Normally, it is removed
# when the resync ends; the expiry is for a store that no service uses any more.
KEEP_MS = MAX_OPEN_MS
# An upload that stops for longer than this is aborted.
UPLOAD_PAUSE_MS = 5 * 60 * 1000
# How long the result can be read.
RESULT_KEPT_MS = 24 * 3600 * 1000
# How often the background work looks at an open resync, and how long after a resync's last step it
# takes over from a process that was killed.
LOOK_MS = 10_000
# A quiet resync finishes by itself only if each look followed the last one within this time. If
# not, the service was down and requests may have failed, or the store's clock has jumped.
LOOKS_APART_MS = 6 * LOOK_MS
_RENEW_SECONDS = 3.0
_NOTE_SECONDS = 1.0
_DUE_AT_ONCE = 100
# What resync_begin.lua does; resync.lua does the rest, also if the store is full.
_BEGINNING = ("open", "quiet", "mark", "stage")

_Step = TypeVar("_Step")


class ConfirmedLost(Exception):
    """Who was confirmed is unknown: it expired, or a partition lost data since the resync began."""


class ResyncPlace(NamedTuple):
    """The cohort that a resync belongs to."""

    app_id: str
    cohort_id: str


class _Scanned(NamedTuple):
    """Some members of a partition.

    Attributes:
        looked_at: how many.
        users: those of them who are not confirmed.
        cursor: where the scan continues; "0" at the end.
        run: the server process that returned the cursor.
    """

    looked_at: int
    users: list[bytes]
    cursor: str
    run: str


class FileCounts(NamedTuple):
    """What an import does, or would do, to the members."""

    added: int
    removed: int
    unchanged: int
    members: int


class Resyncs:
    """Begins, advances and ends resyncs. Raises StoreError."""

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        layout: Layout,
        registry: Registry,
        memberships: Memberships,
        freshness: FreshnessStore,
        size_history: SizeHistory,
        *,
        known_only: bool,
        completeness: CompletenessStore,
        failed_requests: FailedRequests,
        losses: Losses,
    ) -> None:
        self._client = client
        self._keys = keys
        self._layout = layout
        self._registry = registry
        self._memberships = memberships
        self._freshness = freshness
        self._size_history = size_history
        self._known_only = known_only
        self._completeness = completeness
        self._failed_requests = failed_requests
        self._losses = losses
        self._begin = load_script(client, "resync_begin.lua")
        self._advance = load_script(client, "resync.lua")
        self._absent = load_script(client, "absent.lua")
        self._unconfirmed = load_script(client, "unconfirmed.lua")
        self._due = load_script(client, "resyncs_due.lua")
        self._lease = load_script(client, "lease.lua")
        self._token = secrets.token_hex(8)
        # Of imports that this process has staged users for: confirmations by partition.
        self._staged: dict[str, dict[int, int]] = {}

    def open(
        self, place: ResyncPlace, kind: ResyncKind, *, quiet_ms: int | None = None
    ) -> Resync | None:
        """Begin a resync. Returns None if another one of the cohort is not finished."""
        with store_errors():
            self._layout.check_writable(place.app_id)
            resync_id = secrets.token_hex(8)
            for partition in self._partitions():
                # Fails if the store permits no INFO: without it, the resync could not finish.
                for _ in self._scan(place, partition, resync_id):
                    pass  # it is not open yet, so nobody is found
            quiet = "" if quiet_ms is None else quiet_ms
            if not self._at_home("open", place, resync_id, kind, quiet):
                return None
            opening = self._read(place)
            if opening is None or opening.id != resync_id:
                return None
            return self._complete_opening(place, opening)

    def find(self, place: ResyncPlace) -> Resync | None:
        """The cohort's resync, or the last one for a day after it finished."""
        with store_errors():
            resync = self._read(place)
            if resync is None or resync.is_finished:
                return resync
            confirmed, unconfirmed = self._counts(place, resync)
            return resync._replace(confirmed=confirmed, unconfirmed=unconfirmed)

    def last_received_ms(self, place: ResyncPlace, resync: Resync) -> int | None:
        """When the cohort was last received since the resync began; None if it was not."""
        (freshness,) = self._freshness.of(place.app_id, [place.cohort_id])
        last = freshness.last_received_ms
        return last if last is not None and last >= resync.started_ms else None

    def request_finish(
        self, place: ResyncPlace, resync: Resync, *, force: bool
    ) -> ResyncRefusal | None:
        """Request to finish an open resync; :meth:`steps` does it. May be repeated.

        Args:
            resync: as from :meth:`find`.
            force: finish even if nobody, or fewer than half of the members, would stay.

        Returns:
            Why it is refused; None if it is not.
        """
        if resync.state is not ResyncState.OPEN:
            return None
        if self.is_lost(place, resync):
            return ResyncRefusal.STORE_LOST
        members = resync.confirmed + resync.unconfirmed
        refused = resync_refusal(resync.confirmed, resync.unconfirmed, members)
        if refused and not force:
            return refused
        fields = ("position", "")
        self._change(place, resync.id, (ResyncState.OPEN,), ResyncState.FINISHING, *fields)
        return None

    def is_lost(self, place: ResyncPlace, resync: Resync) -> bool:
        """Whether the store has lost data since a resync began, including who was confirmed."""
        losses = self._losses.of([place.app_id])
        if any(loss.at_ms >= resync.started_ms for loss in losses):
            return True
        staged = self._staged.get(resync.id, {})
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for partition in staged:
                pipeline.hget(self._keys.mark(place.app_id, partition), "confirmations")
            counts = pipeline.execute()
        return any(int(now or 0) < then for now, then in zip(counts, staged.values(), strict=True))

    def request_abort(self, place: ResyncPlace, resync: Resync) -> bool:
        """Request to abort a resync, as if it had never begun; :meth:`steps` does it.

        Returns:
            False if it is finishing, or has finished.
        """
        before = (ResyncState.OPENING, ResyncState.OPEN, ResyncState.ABORTING)
        return self._change(place, resync.id, before, ResyncState.ABORTING)

    # Files

    def stage(self, place: ResyncPlace, resync: Resync, user_ids: Sequence[str]) -> None:
        """Add users of a file to an open import.

        Raises:
            ConfirmedLost: the import has ended, or those added before are gone.
        """
        counts = self._staged.setdefault(resync.id, {})
        with store_errors():
            for partition, users in self._keys.by_partition(user_ids).items():
                for start in range(0, len(users), USERS_PER_STEP):
                    part = users[start : start + USERS_PER_STEP]
                    added, confirmations = self._in_partition(
                        "stage", place, partition, resync.id, KEEP_MS, *part
                    )
                    if added < 0:
                        raise ConfirmedLost
                    least = counts.get(partition, 0) + 1
                    counts[partition] = max(least, confirmations)
                    if confirmations < least:
                        raise ConfirmedLost
            self._at_home("look", place, resync.id, UPLOAD_PAUSE_MS)

    def forget_staged(self, resync: Resync) -> None:
        """Forget what this process knows of an import, once it no longer stages or applies it."""
        self._staged.pop(resync.id, None)

    def count_file(self, place: ResyncPlace, resync: Resync) -> Iterator[FileCounts]:
        """Compare what was staged with the members; yields the counts so far after each step.

        Calls that arrive meanwhile confirm members too, who stay like the users of the file.
        """
        counts = self._count_file(place, resync)
        yield from self._renewing(place, resync, counts, UPLOAD_PAUSE_MS)

    def _count_file(self, place: ResyncPlace, resync: Resync) -> Iterator[FileCounts]:
        added = removed = members = 0
        for partition in self._partitions():
            state, confirmed = (
                self._keys.cohort(place.app_id, partition, place.cohort_id, part)
                for part in ("state", "confirmed")
            )
            with store_errors():
                # An unmarked partition didn't know the cohort: its members entered later, and stay.
                is_marked = self._client.hget(state, "resync") == resync.id.encode()
            common = 0
            for found in self._scan(place, partition, resync.id, marked=False):
                members += found.looked_at
                common += found.looked_at - len(found.users)
                removed += len(found.users) if is_marked else 0
                yield FileCounts(added, removed, members - removed, members)
            with store_errors():
                # Read last: members who have left during the comparison are not in the set.
                added += max(0, int(self._client.scard(confirmed)) - common)
        yield FileCounts(added, removed, members - removed, members)

    def request_apply(self, place: ResyncPlace, resync: Resync) -> bool:
        """Request to apply a staged import; :meth:`steps` does it. False if it has ended."""
        return self._change(
            place, resync.id, (ResyncState.OPEN, ResyncState.APPLYING), ResyncState.APPLYING
        )

    # Advancing

    def lease(self, place: ResyncPlace) -> bool:
        """Acquire or renew the lease of a resync. False while another process has it."""
        home = self._keys.partition(place.cohort_id)
        key = self._keys.cohort(place.app_id, home, place.cohort_id, "resync-lease")
        with store_errors():
            return bool(self._lease(keys=[key], args=[self._token, LEASE_MS]))

    def now_ms(self, place: ResyncPlace) -> int:
        """The time by the clock of a cohort's home partition, as in all records of the cohort."""
        with store_errors():
            return self._ask_due(place.app_id, self._keys.partition(place.cohort_id))[0]

    def due(self, app_id: str) -> list[ResyncPlace]:
        """Unfinished resyncs of an app that the background work should look at now."""
        with store_errors():
            return [
                ResyncPlace(app_id, cohort_id.decode())
                for partition in self._partitions()
                for cohort_id in self._ask_due(app_id, partition)[1]
            ]

    def steps(self, place: ResyncPlace) -> Iterator[None]:
        """Do what a resync needs now, yielding after each step. Ends if it has to wait."""
        with store_errors():
            resync = self._read(place)
            if resync is None or resync.is_finished:
                return
            if resync.state is ResyncState.OPENING:
                self._complete_opening(place, resync)
            elif resync.state is ResyncState.OPEN:
                self._look_at(place)
                resync = self._read(place) or resync
            if resync.state is ResyncState.ABORTING:
                self._abort(place, resync)
            elif resync.state in (ResyncState.APPLYING, ResyncState.FINISHING):
                try:
                    steps = self._replace_members(place, resync)
                    yield from self._renewing(place, resync, steps, LOOK_MS)
                except ConfirmedLost:
                    self._stop(place, resync)
                except StoreFull:
                    if resync.kind is not ResyncKind.RESYNC:
                        # Its staged file takes memory that others need, and may have filled it.
                        self._stop(place, resync)
                    raise
                else:
                    self._finish(place, resync)

    def _stop(self, place: ResyncPlace, resync: Resync) -> None:
        """Remove nobody else: an import ends, a resync waits for an operator to abort it."""
        finishing = (ResyncState.APPLYING, ResyncState.FINISHING)
        if resync.kind is ResyncKind.RESYNC:
            fields = ("refused", ResyncRefusal.STORE_LOST)
            self._change(place, resync.id, finishing, ResyncState.OPEN, *fields)
        elif self._change(place, resync.id, finishing, ResyncState.ABORTING):
            self._abort(place, resync)

    def _replace_members(self, place: ResyncPlace, resync: Resync) -> Iterator[None]:
        if self.is_lost(place, resync):
            raise ConfirmedLost
        self._keep(place, resync)
        if resync.state is ResyncState.APPLYING:
            yield from self._apply_file(place, resync)
            self._change(place, resync.id, (ResyncState.APPLYING,), ResyncState.FINISHING)
        yield from self._remove_unconfirmed(place, resync)
        if self.is_lost(place, resync):
            raise ConfirmedLost

    def _renewing(
        self, place: ResyncPlace, resync: Resync, steps: Iterator[_Step], pause_ms: int
    ) -> Iterator[_Step]:
        """Do the steps, and keep other processes from taking over, or from ending an import."""
        renewed = time.monotonic()
        for step in steps:
            if time.monotonic() - renewed > _RENEW_SECONDS:
                renewed = time.monotonic()
                self._at_home("look", place, resync.id, pause_ms)
            yield step

    def _complete_opening(self, place: ResyncPlace, resync: Resync) -> Resync:
        for partition in self._partitions():
            self._in_partition("mark", place, partition, resync.id, KEEP_MS)
        if not self._change(place, resync.id, (ResyncState.OPENING,), ResyncState.OPEN):
            current = self._read(place)
            if current is None or current.id != resync.id or current.is_finished:
                self._clear(place, resync)  # it has ended while this process marked the partitions
        pause = UPLOAD_PAUSE_MS if resync.kind is not ResyncKind.RESYNC else LOOK_MS
        self._at_home("look", place, resync.id, pause)
        return resync._replace(state=ResyncState.OPEN)

    def _look_at(self, place: ResyncPlace) -> None:
        """Finish or abort a resync that is open, if it is time."""
        resync = self.find(place)
        if resync is None or resync.state is not ResyncState.OPEN:
            return
        now_ms = self.now_ms(place)
        if resync.kind is not ResyncKind.RESYNC or now_ms - resync.started_ms > MAX_OPEN_MS:
            self.request_abort(place, resync)
            return
        if resync.quiet_ms is not None and not self._lacks_requests(place, resync, now_ms):
            last = self.last_received_ms(place, resync)
            if last is None and resync.confirmed:
                # Arrivals within a second of a noted one are not noted, so the first ones of the
                # resync may be missing.
                last = resync.started_ms
            if last is not None and now_ms - last >= resync.quiet_ms:
                # Two looks must find it quiet: a store that was set back looks quiet at first.
                was_quiet = self._was_quiet(place, since_ms=last)
                if self._note_quiet(place, resync, now_ms) and was_quiet:
                    refused = self.request_finish(place, resync, force=False)
                    if refused is None:
                        return
                    self._note(place, resync.id, ResyncState.OPEN, "refused", refused)
        self._keep(place, resync)
        self._at_home("look", place, resync.id, LOOK_MS)

    def _lacks_requests(self, place: ResyncPlace, resync: Resync, now_ms: int) -> bool:
        """Whether requests may have failed since a resync began, leaving members unconfirmed.

        Remains true once one has failed permanently, even if a sync without failures follows.
        """
        if resync.refused is ResyncRefusal.REQUESTS_FAILED:
            return True
        looked_ms: Any = self._client.hget(self._record_key(place), "looked_at")
        is_unknown = not 0 <= now_ms - int(looked_ms or now_ms) <= LOOKS_APART_MS
        if is_unknown or self._completeness.has_failed(*place, since_ms=resync.started_ms):
            fields = ("refused", ResyncRefusal.REQUESTS_FAILED)
            self._note(place, resync.id, ResyncState.OPEN, *fields)
            return True
        return any(
            one.cohort_id == place.cohort_id and at_ms >= resync.started_ms
            for one, at_ms in self._failed_requests.all(place.app_id).items()
        )

    def _was_quiet(self, place: ResyncPlace, since_ms: int) -> bool:
        """Whether a resync was found quiet before, at ``since_ms`` or later."""
        at_ms: Any = self._client.hget(self._record_key(place), "quiet_at")
        return at_ms is not None and int(at_ms) >= since_ms

    def _note_quiet(self, place: ResyncPlace, resync: Resync, now_ms: int) -> bool:
        """Note that a resync was found quiet. False if the store is full: then requests fail."""
        try:
            with store_errors():
                return bool(self._at_home("quiet", place, resync.id, now_ms))
        except StoreFull:
            self._note(place, resync.id, ResyncState.OPEN, "quiet_at", "0")
            return False

    def _keep(self, place: ResyncPlace, resync: Resync) -> None:
        for partition in self._partitions():
            self._in_partition("keep", place, partition, resync.id, KEEP_MS)

    def _abort(self, place: ResyncPlace, resync: Resync) -> None:
        self._clear(place, resync)
        self._at_home("drop", place, resync.id)

    def _clear(self, place: ResyncPlace, resync: Resync) -> None:
        for partition in self._partitions():
            self._in_partition("clear", place, partition, resync.id)

    def _apply_file(self, place: ResyncPlace, resync: Resync) -> Iterator[None]:
        """Add the users of a file, as of the import's beginning: those who left since stay out.

        Users who are members already are skipped, so that no statement about them is recorded. A
        call from before the import may still arrive, and must count.
        """
        trait = self._registry.trait(*place) or ""
        cohort = Cohort(place.cohort_id, trait)
        unknown = 0
        for partition in self._partitions():
            stream = self._keys.changes(place.app_id, partition)
            key = self._keys.cohort(place.app_id, partition, place.cohort_id, "confirmed")
            cursor, run = b"", b""
            unknown_here = 0
            while cursor != b"0":
                last_run = run
                cursor, run, users = self._absent(
                    keys=[stream], args=[place.cohort_id, cursor, run, USERS_PER_STEP, resync.id]
                )
                if run != last_run:
                    unknown_here = 0  # the scan began again
                if users:
                    applied = self._memberships.enter(
                        place.app_id,
                        cohort,
                        [user.decode() for user in users],
                        resync.started_ms,
                        import_id=resync.id,
                        known_only=self._known_only,
                    )
                    entered = applied.moves[place.cohort_id].entered if applied.moves else 0
                    self._count(place, resync.id, "added", entered)
                    unknown_here += len(applied.unknown.get(place.cohort_id, ()))
                yield
            unknown += unknown_here
            if self._client.get(f"{key}-of") != resync.id.encode():
                raise ConfirmedLost
        self._note(place, resync.id, ResyncState.APPLYING, "unknown", str(unknown))

    def _remove_unconfirmed(self, place: ResyncPlace, resync: Resync) -> Iterator[None]:
        position, noted = "", time.monotonic()
        try:
            for partition, found in self._rest(place, resync.id):
                if found.users:
                    removed = self._memberships.remove_unconfirmed(
                        *place, partition, resync.id, found.users
                    )
                    self._count(place, resync.id, "removed", removed)
                position = _position(partition, found)
                if time.monotonic() - noted > _NOTE_SECONDS:
                    noted = time.monotonic()
                    self._note_position(place, resync.id, position)
                yield
        except GeneratorExit:  # the caller has no more time
            self._note_position(place, resync.id, position)
            raise

    def _rest(self, place: ResyncPlace, resync_id: str) -> Iterator[tuple[int, _Scanned]]:
        """What a removal has not looked at yet, with its partition."""
        noted: Any = self._client.hget(self._record_key(place), "position")
        first, cursor, run = noted.decode().split(" ") if noted else ("0", "0", "")
        for partition in self._partitions()[int(first) :]:
            for found in self._scan(place, partition, resync_id, cursor, run):
                yield partition, found
            cursor, run = "0", ""

    def _note_position(self, place: ResyncPlace, resync_id: str, position: str) -> None:
        self._note(place, resync_id, ResyncState.FINISHING, "position", position)

    def _finish(self, place: ResyncPlace, resync: Resync) -> None:
        if not self._note(place, resync.id, ResyncState.FINISHING):
            return  # another process has finished it, or had to stop: some members may be wrong
        self._clear(place, resync)
        record = self._registry.find(*place)
        members = record.members if record else 0
        by = VerifiedBy(resync.kind)
        self._failed_requests.forget(*place, resync.started_ms)
        self._completeness.verify(*place, by, resync.started_ms)
        self._at_home("finish", place, resync.id, members, RESULT_KEPT_MS)
        self._size_history.record(place.app_id, [place.cohort_id])

    def _scan(
        self,
        place: ResyncPlace,
        partition: int,
        resync_id: str,
        cursor: str = "0",
        run: str = "",
        *,
        marked: bool = True,
    ) -> Iterator[_Scanned]:
        """The members of a partition, some at a time.

        Args:
            cursor, run: where to begin, from an earlier :class:`_Scanned`.
            marked: find nobody if the partition is not marked: its members have all entered since
                the resync began.
        """
        stream = self._keys.changes(place.app_id, partition)
        while True:
            marker = resync_id if marked else ""
            *place_found, looked_at, users = self._unconfirmed(
                keys=[stream], args=[place.cohort_id, marker, cursor, run, USERS_PER_STEP]
            )
            cursor, run = (text.decode() for text in place_found)
            if cursor == "ended":
                return
            if cursor == "lost":
                raise ConfirmedLost
            if cursor == "restart":
                cursor, run = "0", ""
                continue
            yield _Scanned(looked_at, users, cursor, run)
            if cursor == "0":
                return

    # The record

    def _read(self, place: ResyncPlace) -> Resync | None:
        found: Any = self._client.hgetall(self._record_key(place))
        if b"state" not in found:
            return None
        fields = {name.decode(): value.decode() for name, value in found.items()}
        kind, state = known(ResyncKind, fields["kind"]), known(ResyncState, fields["state"])
        if kind is None or state is None:
            return None  # a process of a later version began it, and continues it
        # What was refused before a resync finished is no longer of interest.
        refused = None if state is ResyncState.FINISHED else fields.get("refused")
        return Resync(
            id=fields["id"],
            kind=kind,
            state=state,
            started_ms=int(fields["started"]),
            quiet_ms=int(fields["quiet"]) if fields.get("quiet") else None,
            added=int(fields.get("added", 0)),
            removed=int(fields.get("removed", 0)),
            unknown=int(fields.get("unknown", 0)),
            members=int(fields["members"]) if "members" in fields else None,
            refused=known(ResyncRefusal, refused),
        )

    def _record_key(self, place: ResyncPlace) -> str:
        home = self._keys.partition(place.cohort_id)
        return self._keys.cohort(place.app_id, home, place.cohort_id, "resync")

    def _counts(self, place: ResyncPlace, resync: Resync) -> tuple[int, int]:
        """Members who are confirmed, and who are not."""
        with self._client.pipeline(transaction=False) as pipeline:
            for partition in self._partitions():
                state, members, confirmed = (
                    self._keys.cohort(place.app_id, partition, place.cohort_id, part)
                    for part in ("state", "members", "confirmed")
                )
                pipeline.hget(state, "resync")
                pipeline.zcard(members)
                pipeline.scard(confirmed)
            replies = iter(pipeline.execute())
        confirmed_total = total = 0
        for _ in self._partitions():
            mark, members_here, confirmed_here = next(replies), next(replies), next(replies)
            # An unmarked partition didn't know the cohort: its members entered later.
            is_marked = mark == resync.id.encode()
            confirmed_total += confirmed_here if is_marked else members_here
            total += members_here
        return confirmed_total, max(0, total - confirmed_total)

    def _change(
        self,
        place: ResyncPlace,
        resync_id: str,
        before: Sequence[ResyncState],
        after: ResyncState,
        *fields: str,
    ) -> bool:
        with store_errors():
            states = " ".join(before)
            return bool(self._at_home("change", place, resync_id, states, after, LOOK_MS, *fields))

    def _note(self, place: ResyncPlace, resync_id: str, state: ResyncState, *fields: str) -> bool:
        """Set fields of the record, if the resync is in a state; returns whether it is."""
        return self._change(place, resync_id, (state,), state, *fields)

    def _count(self, place: ResyncPlace, resync_id: str, field: str, users: int) -> None:
        if users:
            self._at_home("count", place, resync_id, field, users)

    def _at_home(self, action: str, place: ResyncPlace, *args: Any) -> int:
        home = self._keys.partition(place.cohort_id)
        return int(self._in_partition(action, place, home, *args))

    def _in_partition(self, action: str, place: ResyncPlace, partition: int, *args: Any) -> Any:
        script = self._begin if action in _BEGINNING else self._advance
        stream = self._keys.changes(place.app_id, partition)
        return script(keys=[stream], args=[action, place.cohort_id, *args])

    def _partitions(self) -> range:
        return range(self._keys.partitions)

    def _ask_due(self, app_id: str, partition: int) -> tuple[int, list[bytes]]:
        """The time in a partition, in ms since the epoch, and the cohorts that are due."""
        now_ms, due = self._due(keys=[self._keys.changes(app_id, partition)], args=[_DUE_AT_ONCE])
        return int(now_ms), due


def _position(partition: int, found: _Scanned) -> str:
    """Where a removal continues: the partition, and a cursor of a server process in it."""
    if found.cursor == "0":
        return f"{partition + 1} 0 "
    return f"{partition} {found.cursor} {found.run}"
