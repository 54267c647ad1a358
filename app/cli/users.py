"""``flask --app wsgi users …``"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import BinaryIO

import click

from app.auth.admin_actions import erase_user, unsuppress_user
from app.auth.audit_trail import record
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
    the_store,
)
from app.cohorts.cohort import MAX_USER_ID_BYTES, text_problem
from app.store import StoreError

# Ids that go to the store at a time.
_CHUNK = 10_000
# Lines that are complained of one by one; the others are counted.
_MAX_TOLD = 20

users = Group("users", help="Register, look up and erase users.", epilog=EXIT_CODES)


@users.command("register", epilog=EXIT_CODES)
@click.argument("file", type=click.File("rb"))
@app_id_option()
def register(file: BinaryIO, app_id: str | None) -> None:
    """Let users in under USER_POLICY=known.

    FILE has one user id a line, in UTF-8; - is standard input. Lines of white space are skipped.
    Ids that can't be user ids are reported with their line, and all others registered. Doing it
    again changes nothing.
    """
    store = the_store()
    app = one_app(store, app_id, may_be_new=True)
    _work_through(file, "registered", lambda ids: store.registered_users.add(app, ids))


@users.command("unregister", epilog=EXIT_CODES)
@click.argument("file", type=click.File("rb"))
@app_id_option()
def unregister(file: BinaryIO, app_id: str | None) -> None:
    """Let users in no longer under USER_POLICY=known.

    FILE is as for register. The users' traits and memberships stay as they are.
    """
    store = the_store()
    app = one_app(store, app_id)
    record(store, operator(), "unregister_users", app)
    _work_through(file, "unregistered", lambda ids: store.registered_users.remove(app, ids))


@users.command("erase", epilog=EXIT_CODES)
@click.argument("user_id", metavar="ID")
@app_id_option()
@click.option("--suppress", is_flag=True, help="Refuse the user in later syncs, for good.")
@click.option("--yes", is_flag=True, help="Don't ask.")
def erase(user_id: str, app_id: str | None, suppress: bool, yes: bool) -> None:
    """Erase a user: traits, memberships, registration, entries of the change stream.

    Entries that tell about other users too are kept; they leave the stream by age. Erasing a user
    who isn't there is fine.
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
        f"{erased.stream_entries_removed} removed, {erased.stream_entries_kept} kept, as they tell "
        "about other users too."
    )
    if suppress:
        click.echo("Later syncs skip the user.")


@users.command("unsuppress", epilog=EXIT_CODES)
@click.argument("user_id", metavar="ID")
@app_id_option()
def unsuppress(user_id: str, app_id: str | None) -> None:
    """Take a user in again who was erased for good."""
    store = the_store()
    app = one_app(store, app_id)
    _check(user_id)
    if unsuppress_user(store, operator(), app, user_id):
        click.echo("Later syncs take the user in again.")
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
            click.echo("The user was erased for good; syncs skip the user.")
    if not any(known):
        raise click.ClickException("Nothing is known about this user.")


def _check(user_id: str) -> None:
    if problem := text_problem(user_id, MAX_USER_ID_BYTES):
        raise click.BadParameter(problem, param_hint="ID")


def _work_through(file: BinaryIO, done: str, work: Callable[[list[str]], int]) -> None:
    """Give the ids in a file to ``work``, some at a time, and say how it went.

    Raises:
        click.exceptions.Exit: with 1, some lines were not user ids.
    """
    complaints = _Complaints()
    read = changed = 0
    with progress(_size(file), done.capitalize()) as advance:
        try:
            for ids, size in _chunks(file, complaints):
                changed += work(ids)
                read += len(ids)
                advance(size)
        except StoreError:
            click.echo(f"Stopped after {read} ids. Doing it again is harmless.", err=True)
            raise
    click.echo(f"{read} ids read, {changed} {done}, {complaints.count} invalid.")
    complaints.end()


class _Complaints:
    """Says on standard error what is wrong with which lines."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, line: int, problem: str) -> None:
        self.count += 1
        if self.count <= _MAX_TOLD:
            click.echo(f"line {line}: {problem}", err=True)

    def end(self) -> None:
        if self.count > _MAX_TOLD:
            click.echo(f"… and {self.count - _MAX_TOLD} more invalid lines.", err=True)
        if self.count:
            raise click.exceptions.Exit(1)


def _chunks(lines: Iterable[bytes], complaints: _Complaints) -> Iterator[tuple[list[str], int]]:
    """The good ids of some thousand lines at a time, with the bytes that these lines had."""
    ids: list[str] = []
    size = 0
    for number, line in enumerate(lines, 1):
        size += len(line)
        text = line.rstrip(b"\r\n")
        if number == 1:
            text = text.removeprefix(b"\xef\xbb\xbf")  # as some editors begin a file
        if not text.strip():
            continue
        try:
            user_id = text.decode()
        except UnicodeDecodeError:
            complaints.add(number, "Must be valid UTF-8.")
            continue
        if problem := text_problem(user_id, MAX_USER_ID_BYTES):
            complaints.add(number, problem)
            continue
        ids.append(user_id)
        if len(ids) == _CHUNK:
            yield ids, size
            ids, size = [], 0
    yield ids, size


def _size(file: BinaryIO) -> int | None:
    """The bytes of a regular file; None for a pipe or a terminal."""
    with suppress(OSError):
        return os.fstat(file.fileno()).st_size or None
    return None
