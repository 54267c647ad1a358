"""`simulator certify`."""

from __future__ import annotations

import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import click

from ..certify import (
    CHECKED_MODES,
    NothingFound,
    Options,
    Unauthorised,
    WrongPath,
    report,
    run_checks,
    select_checks,
)
from ..certify.checks import CHECKS
from ..connection import Target
from ..reader import ReaderError
from .exit_codes import HELP, ExitCode
from .options import (
    DEFAULT_TIMEOUT_SECONDS,
    check_reachable,
    exit_with,
    nothing_found,
    open_reader,
    parse_headers,
    path_options,
    reader_options,
    refused_key,
    target_options,
)


@click.command(epilog=HELP)
@target_options(url_required=False)
@click.option(
    "--modes",
    default=",".join(CHECKED_MODES),
    show_default=True,
    help="The modes that the receiver supports.",
)
@click.option("--only", multiple=True, metavar="PATTERN", help="Only these checks, e.g. list.*")
@click.option("--skip", multiple=True, metavar="PATTERN", help="All checks except these.")
@click.option("--list", "list_only", is_flag=True, help="List the checks and exit.")
@click.option("--invalid-user", metavar="ID", help="A user id that the receiver answers with 404.")
@click.option(
    "--throttle",
    type=click.IntRange(1),
    help="How many requests in quick succession the receiver is sure to throttle (429).",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT_TIMEOUT_SECONDS,
    show_default=True,
    help="Seconds to wait for a reply.",
)
@path_options
@click.option(
    "--list-id-path",
    metavar="PATH",
    default=Options.list_id_path,
    show_default=True,
    help="The path to the list id, as set in Amplitude's portal.",
)
@click.option("--seed", type=int, help="Makes a run repeatable. [default: random, and printed]")
@reader_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
@click.option(
    "--html",
    "html_file",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Also write the report as an HTML page with a latency chart.",
)
def certify(
    url: str | None,
    key: str | None,
    app_id: str | None,
    auth: Any,
    header: tuple[str, ...],
    modes: str,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    list_only: bool,
    invalid_user: str | None,
    throttle: int | None,
    timeout: float,
    path: str,
    lists_path: str,
    webhook_path: str,
    list_id_path: str,
    seed: int | None,
    reader_url: str | None,
    reader_key: str,
    key_prefix: str,
    app: str,
    partitions: int,
    as_json: bool,
    html_file: Path | None,
) -> None:
    """Check a receiver against Amplitude's documentation, and report.

    Certify a staging receiver: the checks write users and cohorts of their own to it.
    """
    if url is None and not list_only:
        raise click.UsageError("Missing argument 'URL'.")
    wanted = [mode.strip() for mode in modes.split(",")]
    if unknown := set(wanted) - set(CHECKED_MODES):
        raise click.UsageError(
            f"--modes: {', '.join(sorted(unknown))} is none of {', '.join(CHECKED_MODES)}"
        )
    options = Options(
        target=Target(url or "", key, app_id, auth, timeout, parse_headers(header)),
        path=path,
        lists_path=lists_path,
        webhook_path=webhook_path,
        list_id_path=list_id_path,
        modes=[mode for mode in CHECKED_MODES if mode in wanted],
        only=only,
        skip=skip,
        invalid_user=invalid_user,
        throttle=throttle,
        seed=secrets.randbelow(2**31) if seed is None else seed,
    )
    selected = select_checks(CHECKS, options)
    if not selected:
        raise click.UsageError("--modes, --only and --skip leave no check.")
    if list_only:
        for check in selected:
            click.echo(f"{check.name} ({check.level}; {check.origin}): {check.requirement}")
        return
    if html_file and not html_file.exists() and not os.access(html_file.parent, os.W_OK):
        raise click.UsageError(f"--html: cannot create a file in {html_file.parent}")
    check_reachable(options.target)
    reader = open_reader(reader_url, reader_key, key_prefix, app, partitions)
    try:
        result = run_checks(
            options,
            CHECKS,
            reader,
            on_outcome=None if as_json else lambda outcome: click.echo(report.line(outcome)),
        )
    except Unauthorised as error:
        exit_with(ExitCode.UNAUTHORISED, refused_key(options.target, str(error)))
    except WrongPath as error:
        exit_with(ExitCode.FAILED, str(error))
    except NothingFound:
        exit_with(ExitCode.USAGE, nothing_found(reader_url or ""))
    except ReaderError as error:
        raise click.UsageError(f"--reader: {error}") from None
    except KeyboardInterrupt:
        exit_with(ExitCode.INTERRUPTED, "Interrupted, so there is no verdict.")
    if html_file:
        html_file.write_text(report.html(result), encoding="utf-8")
    if as_json:
        click.echo(json.dumps(report.as_dict(result), indent=2, ensure_ascii=False))
    else:
        click.echo(f"\n{report.verdict(result)} Repeat with --seed {options.seed}")
    sys.exit(ExitCode.OK if result.certified else ExitCode.FAILED)
