"""Compare a cohort with an export from Amplitude, and replace its members if asked to.

docs/upstream.md describes it for operators, docs/decisions/upstream.md has the reasons.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from app.auth.admin_actions import OtherResync, ResyncRefused
from app.auth.audit_trail import COMMAND, Operator, record
from app.auth.member_import import MemberImport
from app.cohorts import Cohort, OpenReason, ResyncKind, ResyncRefusal, Upstream, VerifiedBy
from app.cohorts.upstream import UpstreamCohort
from app.store import ResyncPlace, Store, StoreError, Tuning
from app.store.upstream import RECONCILE
from app.upstream.comparison import compare
from app.upstream.errors import (
    ExportBudgetSpent,
    NoDiskSpace,
    ReconcileEnded,
    ReconcileRunning,
    ResyncOpen,
    UpstreamBadReply,
    UpstreamError,
    UpstreamFileIncomplete,
    UpstreamNotConfigured,
    UpstreamNotListed,
    UpstreamTooLarge,
)
from app.upstream.export_file import USER_ID, Contents, ExportFile

if TYPE_CHECKING:
    from app.upstream.client import Client, Usage

RUNNING, DONE, REFUSED, FAILED, INTERRUPTED = "running", "done", "refused", "failed", "interrupted"
MAX_USERS = 2_000_000
# Ids in a report.
IDS_REPORTED = 100
_STAGED_AT_ONCE = 1000
# The prefix of temporary folders, and the file in each that its process locks.
_FOLDER, _IN_USE = "cohort-reconcile-", "in-use"
_BEGINS_WITHIN_SECONDS = 10.0
# A file is truncated if it has fewer rows than this share of the listed size, less a few.
_LEAST_SHARE, _LEAST_SLACK = 0.9, 10

OnIds = Callable[[Sequence[str], Sequence[str]], None]


@dataclass
class Report:
    """What a reconcile found and did. Times are in ms since the epoch.

    Attributes:
        state: RUNNING, DONE, REFUSED, FAILED or INTERRUPTED.
        apply: whether the members are to be replaced.
        reason, detail: why it did not succeed.
        size, computed_at_ms: of the cohort, as Amplitude lists it.
        rows: users in the export: of them, ``anonymous`` have no id, the ids of ``unusable`` are
            not accepted, ``suppressed`` were erased here, and ``unregistered`` are neither
            registered nor members.
        members: members here, before anything was changed.
        missing, extra: other users of the export who are not members, and members who are not in
            the export. ``missing_ids`` and ``extra_ids`` are some of them.
        sync_arrived: a sync arrived during the comparison, so it may be part of the difference.
        added, removed: users who entered and left when it was applied.
        exports, exports_most: exports of this month, and AMPLITUDE_EXPORTS_PER_MONTH.
        amplitude_exports, amplitude_most: by Amplitude's own count; None if it did not say.
    """

    state: str
    apply: bool
    requested_ms: int
    finished_ms: int | None = None
    reason: str | None = None
    detail: str | None = None
    size: int | None = None
    computed_at_ms: int | None = None
    rows: int | None = None
    anonymous: int = 0
    unusable: int = 0
    suppressed: int = 0
    unregistered: int = 0
    members: int | None = None
    missing: int | None = None
    extra: int | None = None
    missing_ids: list[str] = field(default_factory=list)
    extra_ids: list[str] = field(default_factory=list)
    sync_arrived: bool = False
    added: int | None = None
    removed: int | None = None
    exports: int | None = None
    exports_most: int | None = None
    amplitude_exports: int | None = None
    amplitude_most: int | None = None

    @property
    def is_equal(self) -> bool:
        """Whether the members are those of the export who can be members here."""
        return self.missing == 0 and self.extra == 0


@dataclass(frozen=True)
class Order:
    """What to reconcile.

    Attributes:
        operator: who ordered it, for the audit trail.
        apply: replace the members with those of the export. Creates a cohort that is unknown here.
        force: apply even if most members, or all, would leave.
        column: the user property that the sync sends in place of the user id, if any.
    """

    operator: Operator
    app_id: str
    cohort_id: str
    apply: bool = False
    force: bool = False
    column: str | None = None

    @property
    def place(self) -> ResyncPlace:
        return ResyncPlace(self.app_id, self.cohort_id)


class Reconciler:
    """Reconciles cohorts, one at a time for each app.

    Args:
        clients: by app id.
        exports_most: exports per app and month.
        known_only: only registered users are added.
        keep_seconds: how often an import is kept alive while it waits for its file.
    """

    def __init__(
        self,
        store: Store,
        clients: Mapping[str, Client],
        *,
        exports_most: int,
        known_only: bool,
        tuning: Tuning,
        keep_seconds: float = 20.0,
    ) -> None:
        self._store = store
        self._keep_seconds = keep_seconds
        self._clients = clients
        self._exports_most = exports_most
        self._known_only = known_only
        self._now = tuning.now
        self._log = structlog.get_logger()

    @staticmethod
    def remove_abandoned() -> None:
        """Remove the files that killed processes have left."""
        _remove_abandoned()

    def is_configured(self, app_id: str) -> bool:
        """Whether there are keys for an app."""
        return app_id in self._clients

    def begin(self, order: Order) -> Report:
        """Claim a reconcile that another greenlet is about to :meth:`run`, and keep its report.

        Raises:
            UpstreamNotConfigured, ReconcileRunning, ExportBudgetSpent, StoreError
        """
        app_id, upstream = order.app_id, self._store.upstream
        if app_id not in self._clients:
            raise UpstreamNotConfigured
        if upstream.exports(app_id) >= self._exports_most:
            raise ExportBudgetSpent
        # Until `run` has the lease, the turn keeps others out.
        if upstream.is_leased(app_id, RECONCILE) or not upstream.take_turn(
            app_id, RECONCILE, _BEGINS_WITHIN_SECONDS
        ):
            raise ReconcileRunning
        return self._new_report(order)

    def _new_report(self, order: Order) -> Report:
        report = Report(RUNNING, order.apply, self._now_ms())
        self._save(order, report)
        return report

    def report(self, app_id: str, cohort_id: str) -> Report | None:
        """The report of the last reconcile of a cohort, for a day."""
        found = self._store.upstream.report(app_id, cohort_id)
        if found is None:
            return None
        # A later version may have more fields.
        names = [member.name for member in fields(Report)]
        report = Report(**{name: found[name] for name in names if name in found})
        # In either direction: the clock may have been ahead at the request.
        has_begun = abs(self._now_ms() - report.requested_ms) > _BEGINS_WITHIN_SECONDS * 1000
        is_leased = self._store.upstream.is_leased(app_id, RECONCILE)
        if report.state == RUNNING and has_begun and not is_leased:
            report.state = INTERRUPTED
            report.reason = ReconcileEnded.reason
            report.detail = ReconcileEnded.detail
        return report

    def run(
        self,
        order: Order,
        report: Report | None = None,
        *,
        on_ids: OnIds = lambda _, __: None,
        progress: Callable[[str], None] = lambda _: None,
        breathe: Callable[[], None] = lambda: None,
    ) -> Report:
        """Reconcile a cohort. Failures are in the report, which is also kept.

        Args:
            report: from :meth:`begin`.
            on_ids: called with missing and extra users, some at a time.
            progress: called with a description of each stage as it begins.
            breathe: called every few ms, to let other work of this process go on.

        Raises:
            ReconcileRunning, UpstreamNotConfigured, StoreError
        """
        if order.app_id not in self._clients:
            raise UpstreamNotConfigured
        with self._store.upstream.lease(order.app_id, RECONCILE) as is_ours:
            if not is_ours:
                raise ReconcileRunning
            self._store.upstream.end_turn(order.app_id, RECONCILE)
            report = report or self._new_report(order)
            about = {"cohort": order.cohort_id, "apply": order.apply, "column": order.column}
            record(self._store, order.operator, "reconcile", order.app_id, **about)
            run = _Run(self._store, self._clients[order.app_id], order, report, self._known_only)
            run.keep_seconds = self._keep_seconds
            run.on_ids, run.progress, run.breathe = on_ids, progress, breathe
            try:
                run.work(self._exports_most)
            except (UpstreamError, StoreError) as error:
                report.state, report.reason = FAILED, error.reason
                report.detail = str(error)
                if isinstance(error, StoreError):
                    raise
            except (KeyboardInterrupt, BrokenPipeError):
                report.state, report.reason = INTERRUPTED, ReconcileEnded.reason
                report.detail = ReconcileEnded.detail
                raise
            except BaseException:
                report.state, report.reason = FAILED, "internal_error"
                report.detail = "Internal error. It has been logged."
                raise
            finally:
                report.finished_ms = self._now_ms()
                self._save(order, report)
        if order.operator.by != COMMAND:  # a command prints the report
            self._log.info(
                "reconciled",
                app=order.app_id,
                cohort=order.cohort_id,
                **{
                    name: value
                    for name, value in asdict(report).items()
                    if not name.endswith("_ids") and value is not None
                },
            )
        return report

    def _save(self, order: Order, report: Report) -> None:
        self._store.upstream.save_report(order.app_id, order.cohort_id, asdict(report))

    def _now_ms(self) -> int:
        return int(self._now() * 1000)


class _Run:
    """One reconcile, while this process has the lease."""

    on_ids: OnIds
    progress: Callable[[str], None]
    breathe: Callable[[], None]
    keep_seconds: float

    def __init__(
        self, store: Store, client: Client, order: Order, report: Report, known_only: bool
    ) -> None:
        self._store = store
        self._client = client
        self._order = order
        self._report = report
        self._known_only = known_only
        self._excluded = 0

    def work(self, exports_most: int) -> None:
        order, report = self._order, self._report
        self.progress("Reading Amplitude's list of cohorts")
        listed = self._listed()
        with ExitStack() as stack:
            folder = Path(stack.enter_context(temporary_folder()))
            # Opened before Amplitude exports: whatever arrives later is newer than the file, and
            # stays as it is.
            importing = stack.enter_context(self._import(listed)) if order.apply else None
            self._spend_export(exports_most)
            began_ms = self._store.resyncs.now_ms(order.place)
            received, reasons = self._received(), self._reasons()
            with _repeating(self._keep_import, self.keep_seconds) if importing else nullcontext():
                file, contents = self._export(folder, listed)
                self.progress("Comparing")
                self._compare(file, contents, folder)
            report.sync_arrived = self._received() != received
            if importing:
                self._apply(importing, file)
            else:
                report.state = DONE
                # Don't verify if a sync arrived or something went wrong during the comparison.
                is_as_before = not report.sync_arrived and self._reasons() == reasons
                if report.is_equal and is_as_before:
                    self._store.failed_requests.forget(*order.place, began_ms)
                    self._store.completeness.verify(*order.place, VerifiedBy.RECONCILE, began_ms)
        self._note(listed)

    def _listed(self) -> UpstreamCohort:
        for cohort in self._client.cohorts():
            if cohort.id == self._order.cohort_id:
                break
        else:
            raise UpstreamNotListed
        self._report.size, self._report.computed_at_ms = cohort.size, cohort.computed_at_ms
        if (cohort.size or 0) > MAX_USERS:
            raise UpstreamTooLarge
        return cohort

    def _spend_export(self, most: int) -> None:
        report, app_id = self._report, self._order.app_id
        usage: Usage | None = self._client.usage()
        report.exports_most = most
        report.exports = self._store.upstream.exports(app_id)
        if usage:
            report.amplitude_exports, report.amplitude_most = usage
            if usage.exports >= usage.limit:
                raise ExportBudgetSpent
        # Counted before it begins, so that a crash cannot make it free.
        if not self._store.upstream.spend_export(app_id, most):
            raise ExportBudgetSpent
        report.exports += 1

    def _export(self, folder: Path, listed: UpstreamCohort) -> tuple[ExportFile, Contents]:
        self.progress("Waiting for Amplitude's export")
        request_id = self._client.begin_export(self._order.cohort_id, self._order.column)
        self._client.wait_for_export(request_id)
        self.progress("Downloading")
        path = folder / "export.csv"
        self._client.download(request_id, path)
        file = ExportFile(path, self._order.column or USER_ID, self.breathe)
        contents = file.scan()
        if contents.rows < (listed.size or 0) * _LEAST_SHARE - _LEAST_SLACK:
            raise UpstreamFileIncomplete
        report = self._report
        report.rows, report.anonymous = contents.rows, contents.anonymous
        report.unusable = contents.unusable
        return file, contents

    def _compare(self, file: ExportFile, contents: Contents, folder: Path) -> None:
        report, order = self._report, self._order
        report.missing = report.extra = report.members = 0
        pairs = compare(
            file.user_ids(),
            self._members(),
            size=contents.rows,
            folder=folder,
            breathe=self.breathe,
        )
        with _disk_errors():
            expected = 0
            for absent, extra, common in pairs:
                suppressed, unknown = self._store.upstream.not_accepted(
                    order.app_id, absent, known_only=self._known_only
                )
                missing = [user for user in absent if user not in suppressed | unknown]
                report.suppressed += len(suppressed)
                report.unregistered += len(unknown)
                report.missing += len(missing)
                # Who is not registered may be later, and is missing then.
                expected += common + len(missing) + len(unknown)
                report.extra += len(extra)
                report.missing_ids += missing[: IDS_REPORTED - len(report.missing_ids)]
                report.extra_ids += extra[: IDS_REPORTED - len(report.extra_ids)]
                self.on_ids(missing, extra)
        # Includes users who are listed twice: Amplitude counts them twice.
        self._excluded = contents.rows - contents.anonymous - expected

    def _members(self) -> Iterator[str]:
        for page in self._store.lookups.all_members(*self._order.place):
            self._report.members = (self._report.members or 0) + len(page)
            for user_id, _ in page:
                yield user_id

    @contextmanager
    def _import(self, listed: UpstreamCohort) -> Iterator[MemberImport]:
        """An open import, which is aborted at the end unless it has been applied."""
        order, new_name = self._order, None
        if self._store.registry.find(*order.place) is None:
            try:
                new_name = Cohort.named(listed.name, listed.id).trait
            except ValueError:
                raise UpstreamBadReply from None
        self._abort_abandoned()
        try:
            with MemberImport(
                *(self._store, order.operator, order.place),
                kind=ResyncKind.RECONCILE,
                new_name=new_name,
            ) as importing:
                yield importing
        except OtherResync:
            raise ResyncOpen from None

    def _abort_abandoned(self) -> None:
        """End the import that a killed reconcile left. This one has the lease: no other runs."""
        resyncs, place = self._store.resyncs, self._order.place
        left = resyncs.find(place)
        if left is None or left.kind is not ResyncKind.RECONCILE:
            return
        if resyncs.request_abort(place, left):
            for _ in resyncs.steps(place):
                pass

    def _keep_import(self) -> None:
        """Keep an import alive while it waits for its file."""
        place = self._order.place
        if resync := self._store.resyncs.find(place):
            self._store.resyncs.stage(place, resync, ())

    def _apply(self, importing: MemberImport, file: ExportFile) -> None:
        self.progress("Applying")
        report, user_ids = self._report, file.user_ids()
        try:
            while some := list(islice(user_ids, _STAGED_AT_ONCE)):
                importing.stage(some)
                self.breathe()
            for _ in importing.compare():
                self.breathe()
            for _ in importing.apply(force=self._order.force):
                self.breathe()
        except ResyncRefused as refused:
            report.state, report.reason = REFUSED, refused.reason
            report.detail = "Most or all members would leave. Use force if that is intended."
            if refused.reason is ResyncRefusal.STORE_LOST:
                report.detail = "The store lost data during the reconcile. Reconcile again."
            elif refused.reason is ResyncRefusal.ENDED:
                report.detail = (
                    "The reconcile was aborted, or the cohort was deleted or lost. Start again."
                )
            return
        result = importing.result()
        report.state = DONE
        report.added, report.removed = result.added, result.removed

    def _reasons(self) -> tuple[OpenReason, ...]:
        (completeness,) = self._store.completeness.of(self._order.app_id, [self._order.cohort_id])
        return completeness.reasons

    def _received(self) -> int | None:
        (freshness,) = self._store.freshness.of(self._order.app_id, [self._order.cohort_id])
        return freshness.last_received_ms

    def _note(self, listed: UpstreamCohort) -> None:
        """Keep Amplitude's record, and how many of its users are never members here."""
        record = Upstream(
            size=listed.size,
            computed_at_ms=listed.computed_at_ms,
            frequency=listed.frequency,
            last_success_ms=listed.last_success_ms,
            last_failure_ms=listed.last_failure_ms,
        )
        self._store.completeness.set_upstream(*self._order.place, record)
        self._store.upstream.count_anonymous(
            *self._order.place, self._report.anonymous, self._excluded
        )


@contextmanager
def _repeating(function: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call a function repeatedly during the block, in a thread."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            try:
                function()
            except StoreError:
                continue

    threading.Thread(target=repeat, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


@contextmanager
def temporary_folder() -> Iterator[str]:
    """A folder for the files of a reconcile, which name users."""
    with _disk_errors():
        _remove_abandoned()
        with (
            tempfile.TemporaryDirectory(prefix=_FOLDER) as folder,
            (Path(folder) / "new").open("wb") as lock,
        ):
            fcntl.flock(lock, fcntl.LOCK_EX)  # until this process ends, if not earlier
            # Named only now, so that no other process finds it unlocked.
            (Path(folder) / "new").rename(Path(folder) / _IN_USE)
            yield folder


def _remove_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        with suppress(OSError), (folder / _IN_USE).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # whoever reads a command's output has stopped, as `head` does
    except OSError:
        raise NoDiskSpace from None
