"""The progress bar of a running sync, and the summary table at its end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from ..cohort_sync import CohortSync, SyncResult
from ..expected_state import Comparison
from ..stats import Stats


class _StartedSync(NamedTuple):
    number: int
    changes: int
    done_before: int
    retries_before: int
    started: float


class SyncProgress:
    """A bar for each sync: changes, changes per second, retries, latency of the last replies.

    Call `start_sync` from any thread, `update` from one thread only.
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} changes"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[retries]}"),
            TextColumn("{task.fields[latency]}"),
            TextColumn("{task.fields[problem]}", style="yellow"),
            console=console,
            transient=False,
        )
        self._syncs: list[_StartedSync] = []
        self._task: TaskID | None = None
        self._shown = -1

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def start_sync(self, number: int, changes: int, stats: Stats) -> None:
        """Add a bar for a sync of `changes` membership changes; `stats` are those before it."""
        self._syncs.append(
            _StartedSync(number, changes, stats.changes_done, stats.retries, time.monotonic())
        )

    def update(self, stats: Stats) -> None:
        """Bring the bars up to date."""
        while self._shown + 1 < len(self._syncs):
            self._shown += 1
            sync = self._syncs[self._shown]
            if self._task is not None:
                last = self._syncs[self._shown - 1]
                self._advance(sync.done_before - last.done_before, sync.started - last.started)
                self._progress.update(self._task, problem="")
            self._task = self._progress.add_task(
                f"sync {sync.number + 1}",
                total=sync.changes,
                speed="",
                retries="",
                latency="",
                problem="",
            )
        if self._task is None:
            return
        sync = self._syncs[self._shown]
        done = stats.changes_done - sync.done_before
        latencies = stats.latencies(last=1000)
        self._advance(done, time.monotonic() - sync.started)
        self._progress.update(
            self._task,
            retries=f"{stats.retries - sync.retries_before:,} retries",
            latency=f"p99 {_milliseconds(latencies.p99)}",
            problem=stats.last_problem[:40] if done < sync.changes else "",
        )

    def _advance(self, changes: int, seconds: float) -> None:
        """Set the bar to `changes`; once it is full, the speed stays as it is."""
        assert self._task is not None
        if not self._progress.tasks[self._task].finished:
            speed = f"{changes / max(seconds, 1e-9):,.0f}/s"
            self._progress.update(self._task, completed=changes, speed=speed)


def summary(
    sync: CohortSync,
    results: Sequence[SyncResult],
    comparison: Comparison | None,
    reader_error: str = "",
) -> Table:
    """Return the table at the end of a run; `reader_error` is why the state couldn't be read."""
    stats, latency, cohort = sync.stats, sync.stats.latencies(), sync.cohort
    table = Table(box=box.SIMPLE_HEAD, show_header=False, title=Text(cohort.trait))
    table.add_column(style="bold")
    table.add_column(overflow="fold")

    def row(name: str, value: object, wrong: bool = False) -> None:
        table.add_row(name, Text(str(value), style="red" if wrong else ""))

    syncs = [result for result in results if not result.late_only]
    succeeded = sum(result.succeeded for result in syncs)
    row("syncs that succeeded", f"{succeeded:,} of {len(syncs):,}", succeeded < len(syncs))
    row("users to sync", f"{cohort.users_so_far:,} ({len(cohort.members):,} are members now)")
    entered, left = (sum(getattr(r, name) for r in syncs) for name in ("entered", "left"))
    row("changes to send", f"{entered + left:,} ({entered:,} entered, {left:,} left)")
    row(
        "changes acknowledged",
        f"{stats.changes_acknowledged:,} ({stats.changes_per_second:,.0f} per second)",
    )
    if stats.changes_rejected:
        row("changes rejected", f"{stats.changes_rejected:,}", True)
    row("HTTP requests", f"{stats.requests:,} ({stats.retries:,} of them retries)")
    row("changes in all requests", f"{stats.changes_sent:,}")
    row("requests given up", f"{stats.gave_up:,}", stats.gave_up > 0)
    row("replies by status", _counts(stats.statuses) or "none")
    if stats.throttled:
        row("rate limit", f"{stats.throttled:,} requests got a 429, and were retried")
    if stats.errors:
        row("requests without reply", _counts(stats.errors))
    if stats.faults:
        row("injected faults", _counts(stats.faults))
    row("time to reply", f"p50 {_milliseconds(latency.p50)}, p99 {_milliseconds(latency.p99)}")
    row("replies over 1 s, over 2 s", f"{latency.over_1s:,}, {latency.over_2s:,}")
    row("duration", f"{stats.seconds:,.2f} s")
    for problem in dict.fromkeys(p for result in results for p in result.problems):
        row("problem", problem, True)
    if reader_error:
        row("reading back failed", reader_error, True)
    if comparison is not None:
        verdict = "all as expected" if comparison.ok else f"{comparison.wrong:,} WRONG"
        not_sent = comparison.checked - cohort.users_so_far
        of_whom = f" ({not_sent:,} of them never sent)" if not_sent else ""
        row(
            "users read back and compared",
            f"{comparison.checked:,}{of_whom}: {verdict}",
            not comparison.ok,
        )
        if comparison.uncertain:
            row("of them, uncertain users", f"{comparison.uncertain:,}")
        for example in comparison.examples[:5]:
            row("", example, True)
    return table


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:,.1f} ms"


def _counts(counter: dict[int, int] | dict[str, int]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in sorted(counter.items(), key=str))
