"""What all commands share: errors, the choice of an app, output and progress."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import click
import orjson
from click.core import ParameterSource
from flask.cli import AppGroup, ScriptInfo

from app.auth.audit_trail import COMMAND, Operator
from app.cohorts.times import utc
from app.services import services
from app.settings import APP_ID, store_address
from app.store import Store, StoreError
from app.telemetry import logs

EXIT_CODES = (
    "Exit codes: 0 success; 1 problems or differences were found, or the command failed; "
    "2 usage error; 130 interrupted."
)
_COMMAND_LINE = ParameterSource.COMMANDLINE
_INTERRUPTED = 130  # as a shell reports a program that SIGINT has ended

Command = TypeVar("Command", bound=Callable[..., Any])


class TypedCommand(click.Command):
    """A command whose usage line repeats what was typed, such as ``flask --app wsgi``."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        if parent and not parent.parent and parent.get_parameter_source("app") == _COMMAND_LINE:
            script = parent.ensure_object(ScriptInfo)
            parent.info_name = f"{parent.info_name} --app {script.app_import_path}"
        return super().make_context(info_name, args, parent, **extra)


class Group(TypedCommand, AppGroup):
    """Commands that use the store. A store error is reported in one line, with exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with logs.on_stderr():
                return super().invoke(ctx)
        except StoreError as error:
            url = services(ctx.ensure_object(ScriptInfo).load_app()).settings.redis_url
            raise explained(error, store_address(url)) from None
        except (KeyboardInterrupt, click.Abort) as error:
            # At a prompt, click turns both Ctrl-C and the end of input into an Abort.
            if isinstance(error, click.Abort) and not isinstance(
                error.__context__, KeyboardInterrupt
            ):
                raise
            click.echo("\nInterrupted.", err=True)
            raise click.exceptions.Exit(_INTERRUPTED) from None


def explained(error: StoreError, address: str) -> click.ClickException:
    """A store error as one line that also says which store, and what its client reported."""
    cause = shown(error.__cause__ or "").strip()
    reported = f" It reported: {cause}" if cause else ""
    return click.ClickException(f"{address}: {error} ({error.reason}){reported}")


def app_id_option(default: str = "the only app") -> Callable[[Command], Command]:
    """The option ``--app-id``, which the command passes to :func:`one_app`.

    Args:
        default: for the help text: the app used without the option.
    """
    return click.option(
        "--app-id",
        metavar="APP",
        callback=_check_app_id,
        help=f"The app. Default: {default}.",
    )


def json_option(command: Command) -> Command:
    """The option ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def _check_app_id(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not APP_ID.fullmatch(value):
        raise click.BadParameter(f"must match {APP_ID.pattern}")
    return value


def the_store() -> Store:
    """The store, after a check that it is available and laid out as the settings say."""
    return services().checked_store()


def one_app(store: Store, given: str | None, *, may_be_new: bool = False) -> str:
    """The app that a command is about.

    Args:
        may_be_new: accept an app without data in the store.

    Raises:
        click.UsageError: the app is ambiguous or unknown. The message lists the known apps.
    """
    known = store.apps()
    if given is None and len(known) == 1:
        return known[0]
    if given is not None and (may_be_new or given in known):
        return given
    existing = f"Known apps: {', '.join(known)}." if known else "The store is empty."
    if given is None:
        raise click.UsageError(f"Select an app with --app-id. {existing}")
    raise click.UsageError(f"Unknown app: {given}. {existing}")


def operator() -> Operator:
    """The user who runs the command, for the audit trail."""
    try:
        who = getpass.getuser()
    except (KeyError, OSError):
        who = "unknown"  # a container's user may have no name
    return Operator(COMMAND, who)


@contextmanager
def progress(length: int | None, label: str) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error if that is a terminal; yield a function to advance it.

    Args:
        length: the total; None if unknown, which shows no bar.
    """
    hidden = not length or not sys.stderr.isatty()
    with click.progressbar(length=length or 0, label=label, file=sys.stderr, hidden=hidden) as bar:
        yield bar.update


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2))


def table(headers: Sequence[str], pages: Iterable[Sequence[Sequence[object]]]) -> None:
    """Print rows in aligned columns, page by page. Columns widen if a later page needs it."""
    widths = [len(header) for header in headers]
    pending: list[Sequence[object]] = [headers]
    for page in pages:
        rows = [*pending, *page]
        pending = []
        cells = [[shown(value) for value in row] for row in rows]
        widths = [max(w, *(len(row[i]) for row in cells)) for i, w in enumerate(widths)]
        for original, row in zip(rows, cells, strict=True):
            aligned = (
                cell.rjust(width) if isinstance(value, int) else cell.ljust(width)
                for value, cell, width in zip(original, row, widths, strict=True)
            )
            click.echo("  ".join(aligned).rstrip())
    if pending:  # there are no pages
        click.echo("  ".join(headers))


def counted(count: int, noun: str) -> str:
    """A count with its noun: ``1 user``, ``2 users``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def shown(value: object) -> str:
    """A value as text, with control characters escaped: they may come from a sender."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def when(ms: int) -> str:
    """A time in ms since the epoch as text, in UTC to the second."""
    return f"{utc(ms).replace(tzinfo=None).isoformat('T', 'seconds')}Z"
