"""``cohort-receiver store …``"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import click

from app.auth import admin_actions
from app.auth.audit_trail import HOLD_STORE, record
from app.cli.group import (
    EXIT_CODES,
    Group,
    app_id_option,
    explained,
    json_option,
    one_app,
    operator,
    print_json,
    progress,
    shown,
    the_store,
    when,
)
from app.services import services
from app.settings import KEY_PREFIX, STORE_URL, BadSettings, store_address
from app.store import MEANINGS, CheckReport, Copy, CopyRefused, CopyReport, StoreError

store = Group("store", help="Check, hold and copy the store.", epilog=EXIT_CODES)


@store.command("check", epilog=EXIT_CODES)
@click.option(
    "--repair",
    is_flag=True,
    help="Repair what is unambiguous, assuming that the cohorts' member lists are right.",
)
@app_id_option("all apps")
@json_option
def check(repair: bool, app_id: str | None, as_json: bool) -> None:
    """Check that hashes, members, counts and change stream agree.

    It may run at any time, even under load. The exit code is 1 if anything was found, even if it
    was repaired: run it again to verify the repair.

    Memory: about 200 bytes for each membership in the change stream, one partition at a
    time.
    """
    there = services().store
    wrong = {name.what for name, _ in there.checker.wrong_global_keys()}
    if "layout" not in wrong:
        the_store()
    if "apps" in wrong:
        app_ids = [] if app_id is None else [app_id]
    else:
        app_ids = there.apps() if app_id is None else [one_app(there, app_id)]
    if repair and "audit" not in wrong:
        record(there, operator(), "repair_store", app_id)
    with progress(there.checker.size(app_ids), "Checking") as advance:
        report = there.checker.run(app_ids, repair=repair, progress=advance)
    if as_json:
        print_json(report.as_dict())
    else:
        for line in _lines(report):
            click.echo(line)
    if not report.ok:
        raise click.exceptions.Exit(1)


def _lines(report: CheckReport) -> Iterator[str]:
    yield (
        f"Checked {', '.join(report.app_ids) or 'nothing'}: {report.cohorts} cohorts, "
        f"{report.memberships} memberships, {report.users} users with {report.fields} traits, "
        f"in {report.seconds:.1f} s."
    )
    for proof in report.streams:
        what = "The whole stream" if proof.whole else "What is left of the stream"
        yield (
            f"{what} of {proof.app_id}, partition {proof.partition}: {proof.transitions} changes, "
            f"{proof.agreeing} memberships agree with it."
        )
        if proof.members_unverified:
            yield f"  Not verified: {proof.members_unverified} members whose entry was trimmed."
        if proof.perhaps_erased:
            yield f"  Not verified: {proof.perhaps_erased} changes, because users were erased."
    if report.ok:
        yield "No problems found."
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
        meaning = MEANINGS[problem]
        cannot = "" if meaning.repairable else " (can only be reported)"
        yield f"  {count} {problem}{repaired}: {meaning.text}{cannot}"


@store.command("hold", epilog=EXIT_CODES)
def hold() -> None:
    """Refuse writes until `store release`, to move the store.

    Calls that would change something are answered with 503 and Retry-After; Amplitude retries
    them for some minutes. Reads continue; background work pauses.
    """
    there = the_store()
    if there.hold.is_of_copy():
        raise click.ClickException("A copy holds the store. Wait for it, or run `store release`.")
    record(there, operator(), HOLD_STORE)
    there.hold.begin()
    click.echo("Writes are on hold until `store release`.")


@store.command("release", epilog=EXIT_CODES)
def release() -> None:
    """Accept writes again after `store hold`."""
    there = the_store()
    there.hold.release()
    record(there, operator(), "release_store")
    click.echo("Writes are accepted again.")


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
@click.option("--prefix", help="KEY_PREFIX of the other store. Default: that of this store.")
@click.option("--cluster", is_flag=True, help="The other store is a cluster.")
@json_option
def copy(url: str, partitions: int, prefix: str | None, cluster: bool, as_json: bool) -> None:
    """Copy the data to an empty store, and compare the content of both.

    Entries of the change streams, open resyncs and sessions are not copied; docs/moving.md lists
    what is.

    During the copy, writes to this store are on hold, as after `store hold`. They are accepted
    again when it ends, unless the store was on hold before. The exit code is 1 if the two stores
    differ, or if keys of an unknown kind were not copied. An interrupted copy can be run again, and
    starts over. To keep the URL out of the list of processes, set COPY_TO instead.
    """
    the_store()
    settings = services().settings
    other = replace(
        settings,
        redis_url=url,
        store_cluster=cluster,
        store_partitions=partitions,
        key_prefix=prefix or settings.key_prefix,
    )
    try:
        if not STORE_URL.match(url):
            raise click.UsageError("--to must be a URL in the form of REDIS_URL")
        if not KEY_PREFIX.fullmatch(other.key_prefix):
            raise click.UsageError(f"--prefix must match {KEY_PREFIX.pattern}")
        other.check_store()
    except BadSettings as error:
        raise click.UsageError(str(error)) from None
    copier = Copy(settings, other)
    try:
        with progress(copier.size(), "Copying") as advance:
            report = copier.run(progress=advance, notify=lambda line: click.echo(line, err=True))
    except CopyRefused as error:
        raise click.ClickException(str(error)) from None
    except StoreError as error:
        addresses = (store_address(each.redis_url) for each in (settings, other))
        raise explained(error, " or ".join(addresses)) from None
    if as_json:
        print_json(report.as_dict())
    else:
        for line in _copy_lines(report):
            click.echo(line)
    if not report.ok:
        raise click.exceptions.Exit(1)


def _copy_lines(report: CopyReport) -> Iterator[str]:
    compared = ", ".join(f"{count} {what}" for what, count in sorted(report.compared.items()))
    yield f"Compared in {report.seconds:.1f} s: {compared or 'nothing'}."
    for what, count in report.not_copied.items():
        yield f"Not copied: {count} keys of an unknown kind or a wrong type, {shown(what)}."
    for what, count in report.different.items():
        yield f"Different: {count} of {shown(what)}."
    for example in report.examples:
        yield f"  {shown(example)}"
    if report.ok:
        yield "Both stores agree."
    if report.still_held:
        yield "Writes to this store are still on hold, until `store release`."


@store.command("acknowledge-loss", epilog=EXIT_CODES)
@app_id_option("all apps")
@click.option(
    "--intended",
    is_flag=True,
    help="The data was removed on purpose: forget the loss, so that no cohort is incomplete "
    "because of it.",
)
def acknowledge_loss(app_id: str | None, intended: bool) -> None:
    """Acknowledge that the store lost data, which ends the alert.

    Cohorts stay incomplete until a resync, an import or a reconcile, and a cohort that arrives for
    the first time after the loss becomes incomplete too. With --intended, the loss is forgotten: it
    marks no further cohorts, and is removed as a reason from those that it has marked.
    """
    there = the_store()
    losses = there.losses.of([app_id] if app_id else there.apps())
    losses = [loss for loss in losses if intended or not loss.acknowledged]
    for loss in losses:
        if intended:
            cleared = admin_actions.forgive_loss(there, operator(), loss.app_id)
            click.echo(
                f"{loss.app_id}: forgotten. Cohorts no longer incomplete because of it: {cleared}."
            )
        elif admin_actions.acknowledge_loss(there, operator(), loss.app_id):
            click.echo(f"{loss.app_id}: acknowledged ({loss.kind}, found {when(loss.found_ms)}).")
    if not losses:
        click.echo("No unacknowledged loss is known.")
