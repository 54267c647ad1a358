"""The command line: `python -m simulator sync|mock|certify|bench-sink`."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import click
from rich.console import Console

from . import exits, faults, mock, payloads
from .certify import Options, Unauthorised, certify, report
from .certify.checks import CHECKS
from .certify.runner import WAYS, chosen
from .cohort import BadIds, Cohort, read_ids
from .engine import MODES, WEBHOOK_TIMEOUT, CohortSync, SyncResult
from .exits import Exit
from .progress import SyncProgress, summary
from .reader import HttpReader, Reader, ReaderError, RedisReader
from .truth import Comparison, compare, say
from .wire import AUTHS, BadTarget, Target, Wire, escaped

CADENCES = {"now": 0.0, "hourly": 3600.0, "daily": 86400.0}
TIMEOUT = 30.0

Function = TypeVar("Function", bound=Callable[..., Any])


def _options(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Several options as one decorator."""

    def add(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return add


_target_options = _options(
    click.argument("url"),
    click.option(
        "--key",
        envvar="SIMULATOR_KEY",
        help="The API key that Amplitude would hold; also taken from SIMULATOR_KEY.",
    ),
    click.option("--app-id", help="Sent as app_id with --auth headers."),
    click.option(
        "--auth",
        type=click.Choice(AUTHS),
        default="basic",
        show_default=True,
        help="Basic with the key as user name, the headers api_key and app_id, "
        "a Bearer token, or nothing.",
    ),
    click.option(
        "--header", multiple=True, metavar="'NAME: VALUE'", help="A header to send as well."
    ),
)


def _escaped(_: object, __: object, path: str | None) -> str | None:
    return path and escaped(path)


_path_options = _options(
    click.option(
        "--path",
        default=payloads.COHORT_PATH,
        show_default=True,
        callback=_escaped,
        help="Where identify and batch go.",
    ),
    click.option("--lists-path", default=payloads.LISTS_PATH, show_default=True, callback=_escaped),
    click.option(
        "--webhook-path", default=payloads.WEBHOOK_PATH, show_default=True, callback=_escaped
    ),
)

_reader_options = _options(
    click.option(
        "--reader",
        "reader_url",
        metavar="URL",
        help="Where the receiver's state is read: its store (redis://, rediss:// or "
        "unix://), or its own address (http:// or https://). Compares it with the truth, "
        "user by user.",
    ),
    click.option(
        "--reader-key",
        default="",
        metavar="KEY",
        help="A key that may read, for a reader over HTTP.",
    ),
    click.option(
        "--key-prefix",
        default="cohorts",
        show_default=True,
        help="The reader's KEY_PREFIX.",
    ),
    click.option(
        "--app", default="default", show_default=True, help="The app whose keys are read."
    ),
    click.option(
        "--partitions",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="The reader's STORE_PARTITIONS.",
    ),
)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=exits.HELP,
)
def main() -> None:
    """Plays Amplitude's side: sends cohorts to a receiver, and says whether it is right.

    URL is always the receiver's base address, such as http://127.0.0.1:8000.
    """


@main.command(epilog=exits.HELP)
@_target_options
@click.option(
    "--mode",
    type=click.Choice(MODES),
    default="property",
    show_default=True,
    help="Batches of identifies, one identify a request, lists, or Cohort Webhooks.",
)
@click.option("--users", type=click.IntRange(1), help="Size of a synthetic cohort. [default: 1000]")
@click.option(
    "--ids",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="User ids from a file, one a line.",
)
@click.option(
    "--cohort", metavar="NAME:ID", help="The id follows the last colon. [default: a new one]"
)
@click.option("--syncs", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--churn",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Share of the members who leave between two syncs; as many others enter.",
)
@click.option("--batch-size", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=4, show_default=True)
@click.option(
    "--retries",
    type=click.IntRange(0),
    default=8,
    show_default=True,
    help="Waiting 1, 2, 4, … 128 seconds before them.",
)
@click.option(
    "--cadence",
    type=click.Choice(list(CADENCES)),
    default="now",
    show_default=True,
    help="Time from one sync to the next.",
)
@click.option(
    "--time-scale",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Multiplies the waits (of retries and cadence): with 0.001 an hour takes 3.6 s.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    help=f"Seconds to wait for an answer. [default: {TIMEOUT:g}; webhook: {WEBHOOK_TIMEOUT:g}]",
)
@click.option(
    "--path",
    callback=_escaped,
    help="Replaces the document's path (lists: what /lists is).",
)
@click.option(
    "--misbehave",
    metavar="KINDS",
    help="'all', 'all=0.1' or 'late=0.02,drop-reply=0.1': a share of the requests, 0.05 where "
    f"none is given. Kinds: {', '.join(kind.replace('_', '-') for kind in faults.KINDS)}.",
)
@click.option("--seed", type=int, help="Makes a run repeatable. [default: drawn, and printed]")
@_reader_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def sync(
    url: str,
    key: str | None,
    app_id: str | None,
    auth: Any,
    header: tuple[str, ...],
    mode: Any,
    users: int | None,
    ids: Path | None,
    cohort: str | None,
    syncs: int,
    churn: float,
    batch_size: int,
    threads: int,
    retries: int,
    cadence: str,
    time_scale: float,
    timeout: float | None,
    path: str | None,
    misbehave: str | None,
    seed: int | None,
    reader_url: str | None,
    reader_key: str,
    key_prefix: str,
    app: str,
    partitions: int,
    as_json: bool,
) -> None:
    """Sync a cohort to the receiver at URL: in full at first, then the differences."""
    if users is not None and ids is not None:
        raise click.UsageError("--users and --ids exclude each other.")
    if seed is None:
        seed = secrets.randbelow(2**31)
    try:
        misbehaviour = faults.parse(misbehave) if misbehave else None
        user_ids = read_ids(ids) if ids else None
    except (ValueError, BadIds, OSError) as error:
        raise click.UsageError(str(error)) from None
    name, cohort_id = _cohort(cohort, seed)
    if user_ids is None:
        group = Cohort.synthetic(name, cohort_id, users or 1000, churn=churn, seed=seed)
    else:
        group = Cohort(name, cohort_id, user_ids, churn=churn, seed=seed)
    wait = timeout or (WEBHOOK_TIMEOUT if mode == "webhook" else TIMEOUT)
    target = _reachable(Target(url, key, app_id, auth, wait, _headers(header)))
    reader = _reader(reader_url, reader_key, key_prefix, app, partitions)
    console = Console(stderr=True)
    progress = SyncProgress(console)
    engine = CohortSync(
        target,
        group,
        mode=mode,
        batch_size=batch_size,
        threads=threads,
        retries=retries,
        time_scale=time_scale,
        seed=seed,
        misbehaviour=misbehaviour,
        path=path,
        on_plan=lambda number, entered, left: progress.planned(
            number, entered + left, engine.stats.users_done
        ),
    )
    results: list[SyncResult] = []
    compared, example, unread = None, "", ""
    with engine:
        # Whatever becomes of the reading, what was sent is reported.
        try:
            if reader is not None:
                engine.truth.assume(_present(reader, engine))
            results = _run(engine, progress, syncs, CADENCES[cadence])
            if reader is not None and not engine.stop.is_set():
                compared = compare(engine.truth, reader)
                example = _example(reader, engine)
        except ReaderError as error:
            unread = str(error)
        except KeyboardInterrupt:
            engine.stop.set()
    exit_code = _exit_code(results, engine, compared, unread)
    if as_json:
        told = _report(engine, results, compared, unread, seed, exit_code)
        click.echo(json.dumps(told, indent=2))
    else:
        Console().print(summary(engine, results, compared, unread))
        click.echo(f"Repeatable with --seed {seed}" + (f". {example}" if example else ""))
    sys.exit(exit_code)


def _run(engine: CohortSync, progress: SyncProgress, syncs: int, every: float) -> list[SyncResult]:
    """Run the engine beside the progress bar; Ctrl-C lets the requests in flight finish."""
    results: list[SyncResult] = []
    failure: list[Exception] = []

    def work() -> None:
        try:
            results.extend(engine.run(syncs, every))
        except Exception as error:  # noqa: BLE001 - raised again below
            failure.append(error)
        finally:
            done.set()

    # An event, since Ctrl-C in the middle of Thread.join() can make a running thread look ended.
    done = threading.Event()
    with progress:
        threading.Thread(target=work, daemon=True).start()
        try:
            while not done.wait(0.1):
                progress.update(engine.stats)
        except KeyboardInterrupt:
            engine.stop.set()
            with contextlib.suppress(KeyboardInterrupt):  # twice: don't wait for answers either
                done.wait(engine.target.timeout)
        progress.update(engine.stats)
    if failure:
        raise failure[0]
    return results


def _exit_code(
    results: list[SyncResult], engine: CohortSync, compared: Comparison | None, unread: str
) -> Exit:
    if engine.stop.is_set():
        return Exit.INTERRUPTED
    if any(result.unauthorised for result in results):
        return Exit.UNAUTHORISED
    if compared is not None and not compared.ok:
        return Exit.DIFFERENT
    if unread:
        return Exit.USAGE
    if engine.stats.gave_up or engine.stats.users_rejected:
        return Exit.FAILED
    return Exit.OK


def _report(
    engine: CohortSync,
    results: list[SyncResult],
    compared: Comparison | None,
    unread: str,
    seed: int,
    exit_code: Exit,
) -> dict[str, Any]:
    report: dict[str, Any] = {
        "url": engine.target.url,
        "mode": engine.mode,
        "cohort": {
            "name": engine.cohort.name,
            "id": engine.cohort.cohort_id,
            "trait": engine.cohort.trait,
            "members": len(engine.cohort.members),
        },
        "seed": seed,
        "outcome": exit_code.name.lower(),
        "syncs": [
            {
                "number": result.number,
                "entered": result.entered,
                "left": result.left,
                "seconds": round(result.seconds, 3),
                "succeeded": result.succeeded,
                "problems": result.problems,
            }
            for result in results
        ],
        **engine.stats.as_dict(),
        "list_ids": sorted(engine.list_ids),
    }
    if compared is not None:
        report["read_back"] = {
            "checked": compared.checked,
            "wrong": compared.wrong,
            "uncertain": compared.uncertain,
            "examples": [str(example) for example in compared.examples],
        }
    if unread:
        report["reader_error"] = unread
    return report


def _present(reader: Reader, engine: CohortSync) -> list[Any]:
    """Read what an earlier run may have left at the receiver."""
    ids, trait = engine.cohort.ids, engine.cohort.trait
    return [
        traits.get(trait)
        for start in range(0, len(ids), 5_000)
        for traits in reader.traits(ids[start : start + 5_000])
    ]


def _example(reader: Reader, engine: CohortSync) -> str:
    user = engine.cohort.ids[engine.cohort.members[0]]
    value = reader.traits([user])[0].get(engine.cohort.trait)
    return f"User {user} has {engine.cohort.trait!r}: {say(value)}"


def _cohort(text: str | None, seed: int) -> tuple[str, str]:
    if text is None:
        return "Simulated cohort", f"sim{seed}"
    name, colon, cohort_id = text.rpartition(":")
    if not (colon and name and cohort_id.strip()):
        raise click.UsageError("--cohort must be NAME:ID")
    return name, cohort_id.strip()


def _headers(given: tuple[str, ...]) -> dict[str, str]:
    headers = {}
    for text in given:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise click.UsageError(f"--header {text!r} must be 'NAME: VALUE'")
        headers[name.strip()] = value.strip()
    return headers


def _reachable(target: Target) -> Target:
    try:
        Wire(target)
    except BadTarget as error:
        raise click.UsageError(str(error)) from None
    parts = urlsplit(target.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except (OSError, UnicodeError) as error:  # the latter from a host name that can't be one
        _end(Exit.UNREACHABLE, f"Nothing answers at {target.url}: {error}")
    return target


def _reader(url: str | None, key: str, prefix: str, app: str, partitions: int) -> Reader | None:
    if url is None:
        return None
    reader: Reader
    try:
        if url.startswith(("http://", "https://")):
            reader = HttpReader(url, key)
        else:
            reader = RedisReader(url, prefix=prefix, app=app, partitions=partitions)
        reader.traits(["-"])
    except ReaderError as error:
        raise click.UsageError(f"--reader: {error}") from None
    return reader


def _end(code: Exit, message: str) -> NoReturn:
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)


@main.command("certify", epilog=exits.HELP)
@_target_options
@click.option(
    "--modes",
    default=",".join(WAYS),
    show_default=True,
    help="The ways in that the receiver has.",
)
@click.option("--only", multiple=True, metavar="PATTERN", help="Only these checks, as list.*")
@click.option("--skip", multiple=True, metavar="PATTERN", help="All checks but these.")
@click.option("--list", "list_only", is_flag=True, help="Say what the checks are and stop.")
@click.option("--invalid-user", metavar="ID", help="A user id that must be answered 404.")
@click.option(
    "--throttle",
    type=click.IntRange(1),
    help="How many quick requests are sure to be throttled (429).",
)
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=TIMEOUT, show_default=True
)
@_path_options
@click.option("--seed", type=int, help="Makes a run repeatable. [default: drawn, and printed]")
@_reader_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
@click.option(
    "--html",
    "html_file",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Also write the report as a page, with a chart of the latencies.",
)
def certify_command(
    url: str,
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
    seed: int | None,
    reader_url: str | None,
    reader_key: str,
    key_prefix: str,
    app: str,
    partitions: int,
    as_json: bool,
    html_file: Path | None,
) -> None:
    """Check what a receiver must do, by Amplitude's document, and report.

    It writes users and cohorts of its own to the receiver: certify a staging one.
    """
    ways = [mode.strip() for mode in modes.split(",")]
    if unknown := set(ways) - set(WAYS):
        raise click.UsageError(
            f"--modes: {', '.join(sorted(unknown))} is none of {', '.join(WAYS)}"
        )
    options = Options(
        target=Target(url, key, app_id, auth, timeout, _headers(header)),
        path=path,
        lists_path=lists_path,
        webhook_path=webhook_path,
        ways=[way for way in WAYS if way in ways],
        only=only,
        skip=skip,
        invalid_user=invalid_user,
        throttle=throttle,
        seed=secrets.randbelow(2**31) if seed is None else seed,
    )
    selected = chosen(CHECKS, options)
    if not selected:
        raise click.UsageError("No check is left by --modes, --only and --skip.")
    if list_only:
        for one in selected:
            click.echo(f"{one.name} ({one.level}; {one.source}): {one.says}")
        return
    if html_file and not html_file.exists() and not os.access(html_file.parent, os.W_OK):
        raise click.UsageError(f"--html: no file can be made in {html_file.parent}")
    _reachable(options.target)
    reader = _reader(reader_url, reader_key, key_prefix, app, partitions)
    try:
        outcome = certify(
            options,
            CHECKS,
            reader,
            on_outcome=None if as_json else lambda one: click.echo(report.line(one)),
        )
    except Unauthorised as error:
        _end(Exit.UNAUTHORISED, f"The receiver refuses the key: {error}")
    except ReaderError as error:
        raise click.UsageError(f"--reader: {error}") from None
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
    if html_file:
        html_file.write_text(report.html(outcome), encoding="utf-8")
    if as_json:
        click.echo(json.dumps(report.as_dict(outcome), indent=2, ensure_ascii=False))
    else:
        click.echo(f"\n{report.verdict(outcome)} Repeatable with --seed {options.seed}")
    sys.exit(Exit.OK if outcome.certified else Exit.FAILED)


@main.command("mock")
@_target_options
@click.option("--cohort", metavar="NAME:ID", default="cohort name:123", show_default=True)
@click.option("--user", default="test.user@email.com", show_default=True)
@_path_options
def mock_command(
    url: str,
    key: str | None,
    app_id: str | None,
    auth: Any,
    header: tuple[str, ...],
    cohort: str,
    user: str,
    path: str,
    lists_path: str,
    webhook_path: str,
) -> None:
    """Print the document's mock payloads as curl commands for the receiver at URL."""
    target = Target(url, key or "TEST_API_KEY", app_id, auth, extra_headers=_headers(header))
    try:
        Wire(target)
    except BadTarget as error:
        raise click.UsageError(str(error)) from None
    name, cohort_id = _cohort(cohort, 0)
    for what, command in mock.commands(
        target,
        cohort_name=name,
        cohort_id=cohort_id,
        user_id=user,
        paths=(path, lists_path, webhook_path),
    ):
        click.echo(f"# {what}\n{command}\n")


@main.command("bench-sink")
@click.option("--users", type=click.IntRange(1), default=1_000_000, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=4, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=1000, show_default=True)
def bench_sink(users: int, threads: int, batch_size: int) -> None:
    """Measure how fast the simulator itself sends, to a sink on this machine that does no work."""
    with subprocess.Popen(
        [sys.executable, "-m", "simulator.sink"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        target = Target(f"http://127.0.0.1:{int(process.stdout.readline())}", "key")
        figures = {}
        for mode in MODES:
            size = min(users, 20_000) if mode == "single" else users
            group = Cohort.synthetic("Bench", "1", size)
            with CohortSync(
                target, group, mode=mode, threads=threads, batch_size=batch_size
            ) as one:
                result = one.sync()
                figures[mode] = {
                    "users": size,
                    "requests": one.stats.requests,
                    "seconds": round(result.seconds, 3),
                    "users_per_second": round(size / result.seconds),
                }
        process.stdin.close()
        received = json.loads(process.stdout.read())
    sent = sum(figure["requests"] for figure in figures.values())
    click.echo(json.dumps({"modes": figures, "sink": received}, indent=2))
    if received["requests"] != sent:
        _end(Exit.FAILED, f"{sent} requests were sent, the sink got {received['requests']}")
