"""What a person sees while a sync runs, and the table at its end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from .engine import CohortSync, SyncResult
from .stats import Stats
from .truth import Comparison


class SyncProgress:
    """A bar for each sync: users, users a second, retries, latency of the last answers.

    `planned` is to be called when a sync begins, `update` now and then, from one thread.
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} users"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[retries]}"),
            TextColumn("{task.fields[latency]}"),
            TextColumn("{task.fields[problem]}", style="yellow"),
            console=console,
            transient=False,
        )
        self._plans: list[tuple[int, int, int, float]] = []
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

    def planned(self, number: int, users: int, done_before: int) -> None:
        """Note that a sync begins, with so many users, after so many of earlier syncs."""
        self._plans.append((number, users, done_before, time.monotonic()))

    def update(self, stats: Stats) -> None:
        """Show how far it is."""
        while self._shown + 1 < len(self._plans):
            self._shown += 1
            number, users, before, began = self._plans[self._shown]
            if self._task is not None:
                _, _, earlier, since = self._plans[self._shown - 1]
                self._done(before - earlier, began - since)
                self._progress.update(self._task, problem="")
            self._task = self._progress.add_task(
                f"sync {number + 1}", total=users, speed="", retries="", latency="", problem=""
            )
        if self._task is None:
            return
        _, users, before, began = self._plans[self._shown]
        done = stats.users_done - before
        last = stats.latencies(last=1000)
        self._done(done, time.monotonic() - began)
        self._progress.update(
            self._task,
            retries=f"{stats.retries:,} retries",
            latency=f"p99 {milliseconds(last.p99)}",
            problem=stats.last_problem[:40] if done < users else "",
        )

    def _done(self, users: int, seconds: float) -> None:
        """Show how many users are done since the sync began, and how fast until they all were."""
        assert self._task is not None
        if not self._progress.tasks[self._task].finished:
            speed = f"{users / max(seconds, 1e-9):,.0f}/s"
            self._progress.update(self._task, completed=users, speed=speed)


def summary(
    sync: CohortSync, results: Sequence[SyncResult], compared: Comparison | None, unread: str = ""
) -> Table:
    """Return the table at the end of a run; `unread` says why the state could not be read."""
    stats, latency = sync.stats, sync.stats.latencies()
    table = Table(box=box.SIMPLE_HEAD, show_header=False, title=Text(sync.cohort.trait))
    table.add_column(style="bold")
    table.add_column(overflow="fold")

    def row(name: str, value: object, wrong: bool = False) -> None:
        table.add_row(name, Text(str(value), style="red" if wrong else ""))

    done = sum(result.succeeded for result in results)
    row("syncs that succeeded", f"{done:,} of {len(results):,}", done < len(results))
    row("users delivered", f"{stats.users_delivered:,}")
    row("users a second", f"{stats.users_delivered / max(stats.seconds, 1e-9):,.0f}")
    row("users sent, repeats included", f"{stats.users_sent:,}")
    if stats.users_rejected:
        row("users not taken", f"{stats.users_rejected:,}", True)
    row("requests", f"{stats.requests:,}")
    row("retries", f"{stats.retries:,}")
    row("requests given up", f"{stats.gave_up:,}", stats.gave_up > 0)
    row("answers", _counts(stats.statuses) or "none")
    if stats.errors:
        row("no answer", _counts(stats.errors))
    if stats.faults:
        row("misbehaviour", _counts(stats.faults))
    row("latency", f"p50 {milliseconds(latency.p50)}, p99 {milliseconds(latency.p99)}")
    row("answers later than 1 s, 2 s, or never", f"{latency.over_1s:,}, {latency.over_2s:,}")
    row("seconds", f"{stats.seconds:,.1f}")
    for problem in dict.fromkeys(p for result in results for p in result.problems):
        row("problem", problem, True)
    if unread:
        row("users could not be read", unread, True)
    if compared is not None:
        verdict = "all as they must be" if compared.ok else f"{compared.wrong:,} WRONG"
        row(
            "users read back, in the cohort or not",
            f"{compared.checked:,}, {verdict}",
            not compared.ok,
        )
        if compared.uncertain:
            row("users who may be either", f"{compared.uncertain:,}")
        for example in compared.examples[:5]:
            row("", example, True)
    return table


def milliseconds(seconds: float | None) -> str:
    """Return a latency for people."""
    return "-" if seconds is None else f"{seconds * 1000:,.1f} ms"


def _counts(counter: dict[int, int] | dict[str, int]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in sorted(counter.items(), key=str))
