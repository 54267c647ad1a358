"""``cohort-receiver cohorts …``"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import NamedTuple

import click
import orjson

from app.auth.admin_actions import begin_cohort_deletion, set_cadence
from app.cli.group import (
    EXIT_CODES,
    Group,
    app_id_option,
    json_option,
    one_app,
    operator,
    print_json,
    progress,
    shown,
    table,
    the_store,
    when,
)
from app.cohorts import (
    CohortRecord,
    Completeness,
    FreshnessState,
    Status,
)
from app.cohorts.freshness import MAX_CADENCE_SECONDS, MIN_CADENCE_SECONDS
from app.store import Store

# What the argument ``learned`` is converted to.
_LEARNED = 0

_HEADERS = (
    *("ID", "NAME", "MEMBERS", "ENTERED", "LEFT", "FIRST", "LAST", "SOURCES", "STATUS"),
    *("FRESHNESS", "COMPLETENESS"),
)

cohorts = Group(
    "cohorts", help="Inspect, replace and delete cohorts, and set their cadence.", epilog=EXIT_CODES
)


@cohorts.command("list", epilog=EXIT_CODES)
@app_id_option()
@json_option
def list_cohorts(app_id: str | None, as_json: bool) -> None:
    """List all cohorts, ordered by id.

    FIRST is when the cohort was first received or imported; LAST is when it was last received, or
    FIRST if it never was. Both are in UTC. SOURCES are how it arrived, such as identify or list.
    ENTERED and LEFT count transitions since FIRST. COMPLETENESS has the reasons why a cohort is
    incomplete.
    """
    store = the_store()
    pages = _pages(store, one_app(store, app_id))
    if as_json:
        _print_array(
            {**asdict(cohort), **states.document} for page in pages for cohort, states in page
        )
    else:
        table(_HEADERS, ([_row(cohort, states) for cohort, states in page] for page in pages))


@cohorts.command("show", epilog=EXIT_CODES)
@click.argument("cohort_id", metavar="ID")
@app_id_option()
@json_option
def show_cohort(cohort_id: str, app_id: str | None, as_json: bool) -> None:
    """Show a cohort: names, counts, sources, and whether it is late or incomplete."""
    store = the_store()
    app_id = one_app(store, app_id)
    cohort = find_cohort(store, app_id, cohort_id)
    (states,) = _states(store, app_id, [cohort_id])
    if as_json:
        print_json({**asdict(cohort), **states.document})
        return
    known, complete = states.reasoned, states.completeness
    if not complete.reasons and complete.verified_by and complete.verified_at_ms:
        known += f" (by {complete.verified_by}, {when(complete.verified_at_ms)})"
    for name, value in (
        ("id", cohort.id),
        ("name", cohort.trait),
        *(("earlier name", f"{n} (until {when(ms)})") for n, ms in cohort.earlier_names.items()),
        ("members", cohort.members),
        ("entered", cohort.entered),
        ("left", cohort.left),
        ("first seen", when(cohort.first_ms)),
        ("last received", _when_or(states.last_received_ms, "never")),
        *(("source", f"{source} (last {when(ms)})") for source, ms in cohort.sources.items()),
        ("status", cohort.status),
        ("freshness", states.freshness),
        ("completeness", known),
    ):
        click.echo(f"{name + ':':16}{shown(value)}")


@cohorts.command("delete", epilog=EXIT_CODES)
@click.argument("cohort_id", metavar="ID")
@app_id_option()
@click.option("--yes", is_flag=True, help="Don't ask for confirmation.")
def delete_cohort(cohort_id: str, app_id: str | None, yes: bool) -> None:
    """Delete a cohort, and remove its trait and memberships from all users.

    Until the deletion is complete, calls for the cohort are refused; later ones create it anew. If
    the command is interrupted, run it again, or leave the rest to the web processes.
    """
    store = the_store()
    app_id = one_app(store, app_id)
    cohort = find_cohort(store, app_id, cohort_id)
    total = store.jobs.users_to_delete(app_id, cohort_id)
    if cohort.status == Status.DELETING:
        click.echo(f"Resuming the deletion: {total} users are left.", err=True)
    elif not yes:
        click.confirm(
            f"Delete the cohort {shown(cohort.trait)} with {cohort.members} members?",
            abort=True,
            err=True,
        )
    begin_cohort_deletion(store, operator(), app_id, cohort_id)
    with progress(total, "Deleting") as advance:
        left = total
        for _ in store.jobs.delete_cohort(app_id, cohort_id):
            # Counted again each time, because the web processes work on it too.
            now_left = store.jobs.users_to_delete(app_id, cohort_id)
            advance(left - now_left)
            left = now_left
        advance(left)
    click.echo(f"Deleted the cohort {shown(cohort_id)}; {total} users had its trait.")


class _Cadence(click.ParamType[int]):
    """Whole seconds, or ``learned``."""

    name = "cadence"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "learned":
            return _LEARNED
        seconds = int(value) if re.fullmatch("[0-9]{1,8}", value) else 0
        if not MIN_CADENCE_SECONDS <= seconds <= MAX_CADENCE_SECONDS:
            limits = f"{MIN_CADENCE_SECONDS} to {MAX_CADENCE_SECONDS}"
            self.fail(f"must be {limits} seconds, or learned.", param, ctx)
        return seconds


@cohorts.command("cadence", epilog=EXIT_CODES)
@click.argument("cohort_id", metavar="ID")
@click.argument("cadence", metavar="[SECONDS|learned]", type=_Cadence(), required=False)
@app_id_option()
@json_option
def cadence_of_cohort(
    cohort_id: str, cadence: int | None, app_id: str | None, as_json: bool
) -> None:
    """Show whether a cohort is late, or set how often it is expected.

    SECONDS is the time from one sync to the next, such as 3600 for an hourly cohort. "learned", the
    default of every cohort, takes it from the cohort's history.
    """
    store = the_store()
    app_id = one_app(store, app_id)
    find_cohort(store, app_id, cohort_id)
    if cadence is not None:
        set_cadence(store, operator(), app_id, cohort_id, cadence * 1000 or None)
    (freshness,) = store.freshness.of(app_id, [cohort_id])
    state = freshness.state(time.time_ns() // 1_000_000)
    if as_json:
        print_json({"state": state, **freshness._asdict()})
        return
    source = "set" if freshness.cadence_is_set else "learned"
    every = f"{freshness.cadence_ms // 1000} s ({source})" if freshness.cadence_ms else "unknown"
    for name, value in (
        ("state", state),
        ("last received", _when_or(freshness.last_received_ms, "never")),
        ("cadence", every),
        ("late after", _when_or(freshness.late_after_ms, "unknown")),
    ):
        click.echo(f"{name + ':':16}{value}")


def _when_or(ms: int | None, otherwise: str) -> str:
    return otherwise if ms is None else when(ms)


def find_cohort(store: Store, app_id: str, cohort_id: str, *, hint: str = "") -> CohortRecord:
    found = store.registry.find(app_id, cohort_id)
    if found is None:
        raise click.ClickException(f"Unknown cohort: {shown(cohort_id)}.{hint}")
    return found


class _States(NamedTuple):
    """Whether a cohort is late or incomplete, and when it was last received."""

    freshness: FreshnessState
    last_received_ms: int | None
    completeness: Completeness

    @property
    def document(self) -> dict[str, object]:
        """What --json adds to the cohort."""
        return {
            "freshness": self.freshness,
            "completeness": self.completeness.state,
            "reasons": [one.reason for one in self.completeness.reasons],
        }

    @property
    def reasoned(self) -> str:
        """The completeness, and why the cohort is incomplete."""
        reasons = ", ".join(one.reason for one in self.completeness.reasons)
        return f"{self.completeness.state}{f' ({reasons})' if reasons else ''}"


def _states(store: Store, app_id: str, ids: list[str]) -> list[_States]:
    now_ms = time.time_ns() // 1_000_000
    fresh, complete = store.freshness.of(app_id, ids), store.completeness.of(app_id, ids)
    return [
        _States(one.state(now_ms), one.last_received_ms, known)
        for one, known in zip(fresh, complete, strict=True)
    ]


def _pages(store: Store, app_id: str) -> Iterator[list[tuple[CohortRecord, _States]]]:
    after = ""
    while page := store.registry.page(app_id, after=after):
        states = _states(store, app_id, [record.id for record in page])
        yield list(zip(page, states, strict=True))
        after = page[-1].id


def _row(record: CohortRecord, states: _States) -> tuple[object, ...]:
    return (
        record.id,
        record.trait,
        record.members,
        record.entered,
        record.left,
        when(record.first_ms),
        when(record.last_ms),
        ",".join(sorted(record.sources)),
        record.status,
        states.freshness,
        states.reasoned,
    )


def _print_array(records: Iterator[dict[str, object]]) -> None:
    """Print a JSON array, one cohort per line, while reading the store."""
    before = b"["
    for cohort in records:
        click.echo(before + b"\n" + orjson.dumps(cohort), nl=False)
        before = b","
    click.echo(b"[]" if before == b"[" else b"\n]")
