"""``flask --app wsgi store …``"""

from __future__ import annotations

from collections.abc import Iterator

import click

from app.cli.group import (
    EXIT_CODES,
    Group,
    app_id_option,
    json_option,
    one_app,
    print_json,
    progress,
    shown,
    the_store,
)
from app.store import MEANINGS, Report

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
