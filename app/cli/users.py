"""``cohort-receiver users …``"""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import BinaryIO

import click

from app.auth.admin_actions import erase_user, unsuppress_user
from app.auth.audit_trail import record
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
)
from app.cohorts.cohort import MAX_USER_ID_BYTES, text_problem
from app.cohorts.member_file import InvalidFile, MemberFile, format_of
from app.store import StoreError

# How many ids of a plain file are sent to the store at a time.
_CHUNK = 10_000
# Invalid lines reported one by one; the rest are counted.
_MAX_REPORTED = 20
# First lines of JSON that is not newline-delimited. They are never taken for ids.
_BEGINS_JSON = (b"{", b"[", b"[{")

users = Group("users", help="Register, show and erase users.", epilog=EXIT_CODES)


@users.command("register", epilog=EXIT_CODES)
@click.argument("file", type=click.File("rb"))
@app_id_option()
def register(file: BinaryIO, app_id: str | None) -> None:
    """Register users, so that USER_POLICY=known accepts them.

    FILE has one user id per line, in UTF-8; - is standard input. If its first line is a CSV header
    with a column user_id, as in the dashboard's left-out.csv, or a JSON object with userId, it is
    read as CSV or newline-delimited JSON. Blank lines are skipped. Invalid ids are reported with
    their line, and all others are registered. Registering a user again changes nothing.
    """
    store = the_store()
    app = one_app(store, app_id, may_be_new=True)
    _work_through(file, "registered", lambda ids: store.registered_users.add(app, ids))
    store.replication.confirm(app)


@users.command("unregister", epilog=EXIT_CODES)
@click.argument("file", type=click.File("rb"))
@app_id_option()
def unregister(file: BinaryIO, app_id: str | None) -> None:
    """Unregister users: USER_POLICY=known then accepts them only in cohorts that they are in.

    FILE is as for register. The users' traits and memberships are kept until they leave.
    """
    store = the_store()
    app = one_app(store, app_id)
    record(store, operator(), "unregister_users", app)
    _work_through(file, "unregistered", lambda ids: store.registered_users.remove(app, ids))
    store.replication.confirm(app)


@users.command("erase", epilog=EXIT_CODES)
@click.argument("user_id", metavar="ID")
@app_id_option()
@click.option("--suppress", is_flag=True, help="Skip the user in all later syncs.")
@click.option("--yes", is_flag=True, help="Don't ask for confirmation.")
def erase(user_id: str, app_id: str | None, suppress: bool, yes: bool) -> None:
    """Erase a user's traits, memberships, registration and change stream entries.

    Entries that name other users too are kept until they expire. Erasing an unknown user succeeds.
    """
    store = the_store()
    app = one_app(store, app_id)
    _check(user_id)
    if not yes:
        click.confirm(f"Erase the user {shown(user_id)}?", abort=True, err=True)
    with progress(store.erasure.stream_entries(app, user_id), "Erasing") as advance:
        erased = erase_user(store, operator(), app, user_id, suppress=suppress, progress=advance)
    click.echo(
        f"Erased. Traits: {erased.traits}. Entries of the change stream: "
        f"{erased.stream_entries_removed} removed, {erased.stream_entries_kept} kept, because "
        "they name other users too."
    )
    if suppress:
        click.echo("Later syncs skip the user.")


@users.command("unsuppress", epilog=EXIT_CODES)
@click.argument("user_id", metavar="ID")
@app_id_option()
def unsuppress(user_id: str, app_id: str | None) -> None:
    """Accept a suppressed user again in later syncs."""
    store = the_store()
    app = one_app(store, app_id)
    _check(user_id)
    if unsuppress_user(store, operator(), app, user_id):
        click.echo("Later syncs accept the user again.")
    else:
        click.echo("The user was not suppressed.")


@users.command("show", epilog=EXIT_CODES)
@click.argument("user_id", metavar="ID")
@app_id_option()
@json_option
def show(user_id: str, app_id: str | None, as_json: bool) -> None:
    """Show a user's traits, and whether the user is registered or suppressed."""
    store = the_store()
    app = one_app(store, app_id)
    _check(user_id)
    known = store.lookups.user_record(app, user_id)
    if as_json:
        print_json(known._asdict())
    else:
        for name, value in sorted(known.traits.items()):
            click.echo(f"{str(value).lower():6}{shown(name)}")
        if known.registered:
            click.echo("The user is registered.")
        if known.suppressed:
            click.echo("The user is suppressed: syncs skip the user.")
    if not any(known):
        raise click.ClickException("Unknown user.")


def _check(user_id: str) -> None:
    if problem := text_problem(user_id, MAX_USER_ID_BYTES):
        raise click.BadParameter(problem, param_hint="ID")


def _work_through(file: BinaryIO, done: str, work: Callable[[list[str]], int]) -> None:
    """Pass the ids in a file to ``work`` in chunks, and report the result.

    Raises:
        click.ClickException: the file cannot be read to its end.
        click.exceptions.Exit: with 1, if a line has no valid user id.
    """
    read = changed = 0
    with progress(_size(file), done.capitalize()) as advance:
        lines = _lines(file, advance)
        start = list(_through_first(lines))
        file_format = format_of(start[-1]) if start else None
        if start and start[-1].removeprefix(codecs.BOM_UTF8).strip() in _BEGINS_JSON:
            raise click.ClickException("The file is JSON. Write one object or id on each line.")
        users = MemberFile(file_format) if file_format else _PlainFile()
        try:
            for ids in users.read(chain(start, lines)):
                changed += work(ids)
                read += len(ids)
        except StoreError:
            click.echo(f"Stopped after {read} ids. It is safe to run the command again.", err=True)
            raise
        except InvalidFile as error:
            raise click.ClickException(f"{error} {read} ids read, {changed} {done}.") from None
    click.echo(f"{read} ids read, {changed} {done}, {users.rejected} invalid.")
    for line, problem in users.errors[:_MAX_REPORTED]:
        click.echo(f"line {line}: {problem}", err=True)
    if (more := users.rejected - users.without_id - _MAX_REPORTED) > 0:
        click.echo(f"… and {more} more invalid lines.", err=True)
    if users.without_id:
        click.echo(f"{counted(users.without_id, 'row')} without a user id.", err=True)
    if users.rejected:
        raise click.exceptions.Exit(1)


@dataclass
class _PlainFile:
    """Reads one id per line, as :class:`MemberFile` reads other formats."""

    rejected: int = 0
    without_id: int = 0  # blank lines are not rejected
    errors: list[tuple[int, str]] = field(default_factory=list)

    def read(self, lines: Iterable[bytes]) -> Iterator[list[str]]:
        ids: list[str] = []
        # Files of old spreadsheets end lines with CR alone.
        for number, text in enumerate(chain.from_iterable(map(bytes.splitlines, lines)), 1):
            if number == 1:
                text = text.removeprefix(codecs.BOM_UTF8)
            if not text.strip():
                continue
            try:
                user_id = text.decode()
            except UnicodeDecodeError:
                self._reject(number, "Must be valid UTF-8.")
                continue
            if problem := text_problem(user_id, MAX_USER_ID_BYTES):
                self._reject(number, problem)
                continue
            ids.append(user_id)
            if len(ids) == _CHUNK:
                yield ids
                ids = []
        yield ids

    def _reject(self, line: int, problem: str) -> None:
        self.rejected += 1
        if len(self.errors) < _MAX_REPORTED:
            self.errors.append((line, problem))


def _lines(file: BinaryIO, advance: Callable[[int], None]) -> Iterator[bytes]:
    size = 0
    for number, line in enumerate(file, 1):
        size += len(line)
        if number % _CHUNK == 0:  # drawing the bar takes longer than reading a line
            advance(size)
            size = 0
        yield line
    advance(size)


def _through_first(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines up to the first that is not blank, including it."""
    for number, line in enumerate(lines):
        yield line
        if (line if number else line.removeprefix(codecs.BOM_UTF8)).strip():
            return


def _size(file: BinaryIO) -> int | None:
    """The size of a regular file in bytes; None for a pipe or a terminal."""
    with suppress(OSError):
        return os.fstat(file.fileno()).st_size or None
    return None
