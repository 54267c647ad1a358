"""``flask --app wsgi store …``"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import click
from flask import current_app

from app.cli.group import (
    EXIT_CODES,
    Group,
    app_id_option,
    json_option,
    one_app,
    print_json,
    progress,
    record,
    shown,
    the_store,
)
from app.settings import BadSettings, Settings
from app.store import MEANINGS, Copier, CopyRefused, CopyReport, Report, side

store = Group("store", help="Look after the store.", epilog=EXIT_CODES)


@store.command("check", epilog=EXIT_CODES)
@click.option("--repair", is_flag=True, help="Repair what needs no guess; the members are right.")
@app_id_option("all of them")
@json_option
def check(repair: bool, app_id: str | None, as_json: bool) -> None:
    """Check that hashes, members, counts and change stream agree.

    It may run at any time, also while requests come in. It ends with 1 where
    something was found, also if that was repaired: run it again to see that nothing is left.

    Memory: about 200 bytes for each user in each cohort that the change stream tells of, one
    partition at a time.
    """
    there = the_store()
    app_ids = there.apps() if app_id is None else [one_app(there, app_id)]
    if repair:
        record(there, "repair_store", app_id)
    with progress(there.checker.size(app_ids), "Checking") as advance:
        report = there.checker.run(app_ids, repair=repair, progress=advance)
    if as_json:
        print_json(report.as_dict())
    else:
        for line in _lines(report):
            click.echo(line)
    if not report.ok:
        raise click.exceptions.Exit(1)


def _lines(report: Report) -> Iterator[str]:
    yield (
        f"Checked {', '.join(report.app_ids) or 'nothing'}: {report.cohorts} cohorts, "
        f"{report.memberships} memberships, {report.users} users with {report.fields} traits, "
        f"in {report.seconds:.1f} s."
    )
    for proof in report.streams:
        what = "The whole stream" if proof.whole else "What is left of the stream"
        yield (
            f"{what} of {proof.app_id}, partition {proof.partition}: {proof.transitions} changes, "
            f"{proof.agreeing} users agree with it."
        )
        if proof.members_untold:
            yield f"  Not proved: {proof.members_untold} members, who entered before it begins."
        if proof.perhaps_erased:
            yield f"  Not proved: {proof.perhaps_erased} changes, as users were erased since."
    if report.ok:
        yield "Nothing is wrong."
        return
    for finding in report.findings:
        parts = [
            finding.problem,
            f"app {finding.app_id}",
            finding.cohort_id and f"cohort {finding.cohort_id}",
            finding.user_id and f"user {finding.user_id}",
            finding.detail,
            finding.repaired and "repaired",
        ]
        yield shown("; ".join(part for part in parts if part))
    yield "Found:"
    for problem, count in report.found.items():
        repaired = f", {report.repaired[problem]} repaired" if report.repaired[problem] else ""
        cannot = "" if MEANINGS[problem].repairable else " (can only be reported)"
        yield f"  {count} {problem}{repaired}: {MEANINGS[problem]}{cannot}"


@store.command("copy", epilog=EXIT_CODES)
@click.option(
    "--to", "url", required=True, metavar="URL", envvar="COPY_TO", help="The other store."
)
@click.option(
    "--partitions",
    required=True,
    type=click.IntRange(1, 16384),
    help="STORE_PARTITIONS of the other store.",
)
@click.option("--cluster", is_flag=True, help="The other store is a cluster.")
@click.option(
    "--follow",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Go on until nothing has changed for so long.",
)
@json_option
def copy(url: str, partitions: int, cluster: bool, follow: float, as_json: bool) -> None:
    """Copy everything to another store, and prove that both agree.

    The store of the settings is copied, while requests go on; nothing is changed in it. The other
    one must be empty, or an earlier copy of this one: then only what differs is written. A copy
    that was stopped goes on when it is run again. It ends with 1 where something is missing in the
    end. The URL may stand in COPY_TO instead, where others can't read it.
    """
    the_store()
    settings: Settings = current_app.extensions["settings"]
    other = replace(settings, redis_url=url, store_cluster=cluster, store_partitions=partitions)
    try:
        if not url.startswith(("redis://", "rediss://", "unix://")):
            raise click.UsageError("--to must begin with redis://, rediss:// or unix://")
        other.check_store()
    except BadSettings as error:
        raise click.UsageError(str(error)) from None
    copier = Copier(side(settings), side(other))
    try:
        with progress(copier.size(), "Copying") as advance:
            report = copier.run(
                progress=advance,
                follow_seconds=follow,
                tell=lambda line: click.echo(line, err=True),
            )
    except CopyRefused as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        print_json(report.as_dict())
    else:
        for line in _copy_lines(report):
            click.echo(line)
    if not report.ok:
        raise click.exceptions.Exit(1)


def _copy_lines(report: CopyReport) -> Iterator[str]:
    yield (
        f"Compared {report.users} users and {report.cohorts} cohorts with {report.members} "
        f"members, in {report.seconds:.1f} s: {report.different} users were otherwise and were put "
        f"right, {report.vanished} were taken out, {report.again} copied again as they changed."
    )
    for form, count in report.left_behind.items():
        yield f"Not copied, as the copy doesn't know them: {count} keys like {shown(form)}"
    for cohort_id in report.disagreeing:
        yield f"The number of members differs: cohort {shown(cohort_id)}. Run `store check` first."
    if report.behind:
        yield (
            f"Not copied: about {report.behind} users and cohorts that changed in the last moment. "
            "Use --follow, or run it again when nothing comes in."
        )
    if report.ok:
        yield "Both stores agree."
