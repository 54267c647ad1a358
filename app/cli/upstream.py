"""``cohort-receiver cohorts reconcile`` and ``cohorts upstream``: Amplitude's own record."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click
from flask.cli import with_appcontext

from app.cli.cohorts import find_cohort
from app.cli.group import (
    EXIT_CODES,
    app_id_option,
    counted,
    json_option,
    one_app,
    operator,
    print_json,
    shown,
    table,
    the_store,
    when,
)
from app.cohorts import Completeness, Freshness, Upstream
from app.services import services
from app.store import Store
from app.upstream.errors import UpstreamError
from app.upstream.reconcile import DONE, Order, Report

_HEADERS = ("ID", "MEMBERS", "SIZE", "ANONYMOUS", "STATE", "FRESHNESS", "SYNCED", "LAST SUCCESS")
_ABSENT_HEADERS = ("ID", "NAME", "SIZE", "SYNCED", "LAST SUCCESS", "DESTINATION")


@click.command(epilog=EXIT_CODES)
@click.argument("cohort_id", metavar="ID")
@click.option(
    "--apply",
    is_flag=True,
    help="Replace the members with those in Amplitude; creates the cohort if it is unknown.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Proceed even if nobody, or fewer than half of the members, would stay.",
)
@click.option(
    "--column",
    metavar="PROPERTY",
    help="The user property that the sync sends in place of the user id.",
)
@click.option("--ids", is_flag=True, help="Print each missing and each extra user, one per line.")
@app_id_option()
@json_option
@with_appcontext
def reconcile(
    cohort_id: str,
    apply: bool,
    force: bool,
    column: str | None,
    ids: bool,
    app_id: str | None,
    as_json: bool,
) -> None:
    """Compare a cohort with Amplitude, user by user.

    Exports the cohort from Amplitude, which takes some minutes and counts against the monthly
    limit. Users who entered or left since the last sync are reported too; the next one sends them.
    """
    if ids and as_json:
        raise click.UsageError("--ids and --json are mutually exclusive.")
    store = the_store()
    app = one_app(store, app_id, may_be_new=apply)
    if not apply:
        find_cohort(store, app, cohort_id, hint=" To create it, add --apply.")
    order = Order(operator(), app, cohort_id, apply=apply, force=force, column=column)
    try:
        report = services().reconciler.run(
            order,
            on_ids=_print_ids if ids else lambda _, __: None,
            progress=lambda what: click.echo(f"{what} …", err=True),
        )
    except UpstreamError as error:
        raise click.ClickException(f"{error} ({error.reason})") from None
    if as_json:
        print_json(asdict(report))
    else:
        _print_report(report, to_stderr=ids)
    if report.state != DONE:
        raise click.ClickException(f"{report.detail} ({report.reason})")
    if not report.is_equal and not apply:
        click.echo("To replace the members with those in Amplitude, add --apply.", err=True)
        raise SystemExit(1)


def _print_ids(missing: Sequence[str], extra: Sequence[str]) -> None:
    for word, user_ids in (("missing", missing), ("extra", extra)):
        for user_id in user_ids:
            click.echo(f"{word}\t{shown(user_id)}")


def _print_report(report: Report, *, to_stderr: bool) -> None:
    left_out = (
        ("anonymous", report.anonymous),
        ("not accepted", report.unusable),
        ("suppressed", report.suppressed),
        ("not registered", report.unregistered),
    )
    rows: list[tuple[str, object]] = []
    if report.rows is not None:
        details = ", ".join(f"{count} {what}" for what, count in left_out if count)
        rows.append(("in Amplitude", f"{report.rows}{f' ({details})' if details else ''}"))
    if report.extra is not None:
        rows += [
            ("members", report.members),
            ("missing", report.missing),
            ("extra", report.extra),
        ]
        if report.is_equal:
            rows.append(("result", "nobody is missing or extra"))
    if report.sync_arrived:
        rows.append(("note", "a sync arrived during the comparison"))
    if report.added is not None:
        entered = counted(report.added, "user")
        rows.append(("replaced", f"{entered} entered, {report.removed} left"))
    if report.exports is not None:
        used = f"{report.exports} of {report.exports_most} this month"
        if report.amplitude_most is not None:
            used += f"; Amplitude had counted {report.amplitude_exports} of {report.amplitude_most}"
        rows.append(("exports", used))
    for name, value in rows:
        click.echo(f"{name + ':':16}{value}", err=to_stderr)


@click.command("upstream", epilog=EXIT_CODES)
@app_id_option("the only one in AMPLITUDE_KEYS")
@json_option
@with_appcontext
def read_upstream(app_id: str | None, as_json: bool) -> None:
    """Read Amplitude's own record now, and compare it with what is here.

    ANONYMOUS users count in SIZE and are never synced; an export shows how many there are. The
    second table lists cohorts that Amplitude syncs but that never arrived here.
    """
    store, parts = the_store(), services()
    apps = [keys.app_id for keys in parts.settings.amplitude_keys]
    if app_id is None and len(apps) == 1:
        app_id = apps[0]
    if app_id not in apps:
        if not apps:
            raise click.UsageError("AMPLITUDE_KEYS is not set.")
        raise click.UsageError(
            f"Select an app with --app-id. AMPLITUDE_KEYS has: {', '.join(apps)}."
        )
    if failure := parts.poller.poll(app_id):
        raise click.ClickException(f"{failure} ({failure.reason})")
    status = store.upstream.poll_status(app_id)
    rows = list(_listed(store, app_id))
    if as_json:
        print_json(
            {
                "listed": status.listed,
                "cohorts": [
                    {
                        "id": cohort_id,
                        "members": members,
                        **(found.upstream or Upstream())._asdict(),
                    }
                    for cohort_id, members, found, _ in rows
                ],
                "absent": status.absent,
                "absent_total": status.absent_total,
            }
        )
        return
    click.echo(f"Cohorts that Amplitude lists: {status.listed}")
    table(_HEADERS, [[_row(*row) for row in rows]])
    if status.absent:
        click.echo(f"\nSynced, but never received here: {status.absent_total}")
        table(_ABSENT_HEADERS, [[_absent_row(cohort) for cohort in status.absent]])


def _listed(store: Store, app_id: str) -> Iterator[tuple[str, int, Completeness, Freshness]]:
    """The cohorts here that Amplitude lists: id, members, completeness and freshness."""
    after = ""
    while records := store.registry.page(app_id, after=after):
        ids = [record.id for record in records]
        completeness = store.completeness.of(app_id, ids)
        freshness = store.freshness.of(app_id, ids)
        for record, known, fresh in zip(records, completeness, freshness, strict=True):
            if known.upstream is not None:
                yield record.id, record.members, known, fresh
        after = ids[-1]


def _row(
    cohort_id: str, members: int, completeness: Completeness, freshness: Freshness
) -> tuple[object, ...]:
    upstream = completeness.upstream or Upstream()
    return (
        cohort_id,
        members,
        "-" if upstream.size is None else upstream.size,
        "-" if upstream.anonymous is None else upstream.anonymous,
        completeness.state,
        freshness.state(time.time_ns() // 1_000_000),
        upstream.frequency or "-",
        _when(upstream.last_success_ms),
    )


def _absent_row(cohort: Mapping[str, Any]) -> tuple[object, ...]:
    size = cohort["size"]
    return (
        cohort["id"],
        cohort["name"],
        "-" if size is None else size,
        cohort["frequency"],
        _when(cohort["lastSuccess"]),
        cohort["targets"],
    )


def _when(ms: int | None) -> str:
    return "-" if ms is None else when(ms)
