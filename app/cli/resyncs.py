"""``cohort-receiver cohorts resync …`` and ``cohorts import``."""

from __future__ import annotations

import gzip
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import click
from flask.cli import with_appcontext

from app.auth.admin_actions import (
    OtherResync,
    ResyncRefused,
    abort_resync,
    finish_resync,
    open_resync,
)
from app.auth.member_import import MemberImport
from app.cli.cohorts import find_cohort
from app.cli.group import (
    EXIT_CODES,
    Group,
    app_id_option,
    counted,
    json_option,
    one_app,
    operator,
    print_json,
    progress,
    shown,
    the_store,
    when,
)
from app.cli.keys import apps_with_keys
from app.cohorts import Cohort, Resync, ResyncKind, ResyncRefusal, ResyncState
from app.cohorts.member_file import FileFormat, InvalidFile, MemberFile
from app.store import ResyncPlace, Store

_CHUNK_BYTES = 1 << 16
_GZIP_MAGIC = b"\x1f\x8b"
_REFUSED = {
    ResyncRefusal.EMPTY: "Nobody was confirmed: all members would leave. --force overrides this.",
    ResyncRefusal.SHRINKS: "More than half of the members would leave. --force overrides this.",
    ResyncRefusal.STORE_LOST: "The store has lost data since the resync or import began, "
    "including who was confirmed. Begin again; a resync must be aborted first.",
    ResyncRefusal.ENDED: "The import ended before it was complete: it was aborted, took too long, "
    "or its cohort was deleted or lost. Begin again.",
    ResyncRefusal.REQUESTS_FAILED: "The resync does not finish automatically: requests for the "
    "cohort failed, or may have failed while the service was down. Members whom they named are not "
    "confirmed. Make Amplitude send everybody again, then finish it.",
}
_REFUSED_FILES = {
    **_REFUSED,
    ResyncRefusal.EMPTY: "The file has no users to keep or add: all members would leave. --force "
    "overrides this.",
}
_UNFINISHED = "Another resync or import of the cohort is not finished. See `cohorts resync status`."
# How often to check whether another process has finished.
_POLL_SECONDS = 0.5

_force_option = click.option(
    "--force",
    is_flag=True,
    help="Proceed even if nobody, or fewer than half of the members, would stay.",
)


resync = Group(
    "resync", help="Replace a cohort's members with those of a full sync.", epilog=EXIT_CODES
)


@resync.command(epilog=EXIT_CODES)
@click.argument("cohort_id", metavar="ID")
@click.option(
    "--quiet",
    "quiet_seconds",
    type=click.IntRange(1, 24 * 3600),
    metavar="SECONDS",
    help="Finish automatically when nothing more has arrived for this long.",
)
@app_id_option()
def start(cohort_id: str, quiet_seconds: int | None, app_id: str | None) -> None:
    """Begin a resync: from now on, everybody reported as a member is confirmed.

    Then make Amplitude send everybody: remove the cohort's sync and add it again.
    """
    store, place = _place(cohort_id, app_id)
    find_cohort(store, *place)
    try:
        open_resync(store, operator(), place, quiet_seconds and quiet_seconds * 1000)
    except OtherResync:
        raise click.ClickException(_UNFINISHED) from None
    if quiet_seconds is None:
        click.echo("The resync is open. Make Amplitude send everybody, then finish it.")
    else:
        click.echo(
            "The resync is open. Make Amplitude send everybody. It finishes by itself once nothing "
            f"more has arrived for {quiet_seconds} s."
        )


@resync.command(epilog=EXIT_CODES)
@click.argument("cohort_id", metavar="ID")
@app_id_option()
@json_option
def status(cohort_id: str, app_id: str | None, as_json: bool) -> None:
    """Show how many members were confirmed, and how many would leave."""
    store, place = _place(cohort_id, app_id)
    found = _found(store, place)
    last_ms = store.resyncs.last_received_ms(place, found)
    if as_json:
        print_json({**found._asdict(), "last_received_ms": last_ms})
        return
    rows: list[tuple[str, object]] = [
        ("state", found.state),
        ("started", when(found.started_ms)),
        ("last received", "nothing since it started" if last_ms is None else when(last_ms)),
    ]
    if found.is_finished:
        rows.append(("members", found.members))
    else:
        rows += [("confirmed", found.confirmed), ("unconfirmed", found.unconfirmed)]
    rows.append(("removed", found.removed))
    needs_operator = found.refused is ResyncRefusal.REQUESTS_FAILED
    if found.quiet_ms and not found.is_finished and not needs_operator:
        rows.append(("finishes", f"after {found.quiet_ms // 1000} s without a request"))
    if found.refused:
        rows.append(("refused", _REFUSED[found.refused]))
    for name, value in rows:
        click.echo(f"{name + ':':16}{value}")


@resync.command(epilog=EXIT_CODES)
@click.argument("cohort_id", metavar="ID")
@_force_option
@app_id_option()
def finish(cohort_id: str, force: bool, app_id: str | None) -> None:
    """Remove the members who were not confirmed.

    If the command is interrupted, run it again, or leave the rest to the web processes.
    """
    store, place = _place(cohort_id, app_id)
    found = _found(store, place)
    try:
        finish_resync(store, operator(), place, found, force=force)
    except OtherResync:
        raise click.ClickException("Cannot finish: the import's file has not arrived.") from None
    except ResyncRefused as error:
        raise click.ClickException(_REFUSED[error.reason]) from None
    done = _finished(store, place, found, found.unconfirmed, "Removing")
    click.echo(f"{counted(done.removed, 'member')} removed; {done.members} remain.")


@resync.command(epilog=EXIT_CODES)
@click.argument("cohort_id", metavar="ID")
@app_id_option()
def abort(cohort_id: str, app_id: str | None) -> None:
    """End a resync or import, as if it had never begun."""
    store, place = _place(cohort_id, app_id)
    if not abort_resync(store, operator(), place, _found(store, place)):
        raise click.ClickException("Cannot abort: it is finishing or has finished.")
    click.echo("Aborted.")


@dataclass
class _Input:
    """A file that is read once, with a progress bar."""

    file: BinaryIO
    advance: Callable[[int], None]

    def chunks(self) -> Iterator[bytes]:
        try:
            if self._is_gzip():
                self.file = cast(BinaryIO, gzip.GzipFile(fileobj=self.file))
            while chunk := self.file.read(_CHUNK_BYTES):
                self.advance(len(chunk))
                yield chunk
        except (OSError, EOFError, zlib.error) as error:
            raise InvalidFile(f"It cannot be read: {error}.") from None

    def _is_gzip(self) -> bool:
        peek = getattr(self.file, "peek", None)
        return peek is not None and peek(2)[:2] == _GZIP_MAGIC


@click.command("import", epilog=EXIT_CODES)
@click.argument("cohort_id", metavar="ID")
@click.argument(
    "file_name", metavar="FILE", type=click.Path(exists=True, dir_okay=False, allow_dash=True)
)
@click.option(
    "--column", metavar="NAME", help="The CSV column with the user ids. Default: user_id."
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice([kind.value for kind in FileFormat]),
    help="By default ndjson for files named .ndjson or .jsonl, else csv.",
)
@click.option(
    "--name",
    metavar="NAME",
    help="The name, or whole trait name, with which to create the cohort if it is unknown.",
)
@click.option("--dry-run", is_flag=True, help="Compare only; change nothing.")
@_force_option
@app_id_option()
@json_option
@with_appcontext
def import_file(
    cohort_id: str,
    file_name: str,
    column: str | None,
    file_format: str | None,
    name: str | None,
    dry_run: bool,
    force: bool,
    app_id: str | None,
    as_json: bool,
) -> None:
    """Replace a cohort's members with those in FILE, or in standard input if FILE is -.

    FILE is CSV with a column user_id, as Amplitude writes it, or newline-delimited JSON: on each
    line, an object with userId, or just the id in quotes. Either may be gzipped. If the command is
    interrupted before it begins to replace members, nothing changes; if it is interrupted later,
    the web processes complete the import.
    """
    store = the_store()
    may_be_new = name is not None and app_id in apps_with_keys(store)
    place = ResyncPlace(one_app(store, app_id, may_be_new=may_be_new), cohort_id)
    new_name = None
    if name is None or store.registry.find(*place) is not None:
        find_cohort(store, *place, hint=" To create it, add --name.")
    else:
        try:
            new_name = Cohort.given(name, cohort_id).trait
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--name") from None
    members = MemberFile(_format(file_name, file_format), column)
    try:
        with MemberImport(store, operator(), place, new_name=new_name) as importing:
            with (
                click.open_file(file_name, "rb") as file,
                progress(_size(file_name), "Reading") as advance,
            ):
                for users in members.read(_Input(cast(BinaryIO, file), advance).chunks()):
                    importing.stage(users)
            for _ in importing.compare():
                pass
            result, refusal = importing.preview, importing.refusal
            if not dry_run:
                for _ in importing.apply(force=force):
                    pass
                result = importing.result()
    except InvalidFile as error:
        raise click.ClickException(f"{shown(file_name)}: {error}") from None
    except OtherResync:
        raise click.ClickException(_UNFINISHED) from None
    except ResyncRefused as error:
        raise click.ClickException(_REFUSED_FILES[error.reason]) from None
    if dry_run and refusal is not None and not force:
        click.echo(f"The import would be refused. {_REFUSED_FILES[refusal]}", err=True)
    if as_json:
        print_json({**result._asdict(), "rejected": members.rejected, "dry_run": dry_run})
        return
    for line, problem in members.errors[:10]:
        click.echo(f"line {line}: {problem}", err=True)
    would = "would have " if dry_run else ""
    members_already = "was a member" if result.unchanged == 1 else "were members"
    click.echo(
        f"{counted(result.added, 'user')} {would}entered, {result.removed} {would}left, "
        f"{result.unchanged} {members_already} already."
    )
    if members.without_id:
        click.echo(f"{counted(members.without_id, 'row')} without a user id (anonymous users).")
    if unusable := members.rejected - members.without_id:
        click.echo(f"{counted(unusable, 'row')} with an unusable user id.")
    if result.unknown:
        click.echo(f"{counted(result.unknown, 'user')} not registered.")


def _format(file_name: str, given: str | None) -> FileFormat:
    if given is not None:
        return FileFormat(given)
    plain = file_name.lower().removesuffix(".gz")
    return FileFormat.NDJSON if plain.endswith((".ndjson", ".jsonl")) else FileFormat.CSV


def _size(file_name: str) -> int | None:
    """The size of a file in bytes; None for standard input and compressed files."""
    if file_name == "-" or file_name.endswith(".gz"):
        return None
    return Path(file_name).stat().st_size


def _place(cohort_id: str, app_id: str | None) -> tuple[Store, ResyncPlace]:
    store = the_store()
    return store, ResyncPlace(one_app(store, app_id), cohort_id)


def _found(store: Store, place: ResyncPlace) -> Resync:
    found = store.resyncs.find(place)
    if found is None:
        raise click.ClickException(f"The cohort {shown(place.cohort_id)} has no resync.")
    if found.kind is not ResyncKind.RESYNC and not found.is_finished:
        click.echo(f"This is an unfinished {found.kind}.", err=True)
    return found


def _finished(store: Store, place: ResyncPlace, before: Resync, total: int, label: str) -> Resync:
    """Do the steps of a resync, which other processes may do as well, until it has finished.

    Raises:
        ClickException: the store lost data, so nobody else is removed.
    """
    with progress(total, label) as advance:
        removed = before.removed
        for _ in store.resyncs.steps(place):
            now = store.resyncs.find(place)
            advance(now.removed - removed if now else 0)
            removed = now.removed if now else removed
    while True:
        found = _found(store, place)
        if found.is_finished or found.id != before.id:
            return found
        if found.state is ResyncState.OPEN and found.refused:
            raise click.ClickException(_REFUSED[found.refused])
        time.sleep(_POLL_SECONDS)
