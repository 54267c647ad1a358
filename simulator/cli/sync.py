"""`simulator sync`."""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
import threading
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ..cohort import Cohort, InvalidIdFile, read_ids
from ..cohort_sync import MODES, WEBHOOK_TIMEOUT_SECONDS, CohortSync, SyncResult
from ..connection import Target
from ..expected_state import Comparison, compare, format_value
from ..faults import DEFAULT_RATE, FAULT_KINDS, parse_faults
from ..reader import Reader, ReaderError, Value
from ..upstream import Frequency, ServedCohort, SyncInfo
from .exit_codes import HELP, ExitCode
from .options import (
    DEFAULT_TIMEOUT_SECONDS,
    check_reachable,
    exit_with,
    nothing_found,
    open_reader,
    open_upstream,
    parse_cohort,
    parse_headers,
    percent_encoded,
    reader_options,
    refused_key,
    target_options,
    upstream_options,
    wait_for_ctrl_c,
)
from .progress import SyncProgress, summary

CADENCES = {"now": 0.0, "hourly": 3600.0, "daily": 86400.0}
FREQUENCIES: dict[str, Frequency] = {"now": "minute", "hourly": "hourly", "daily": "daily"}
USERS_PER_READ = 5_000


@click.command(epilog=HELP)
@target_options()
@click.option(
    "--mode",
    type=click.Choice(MODES),
    default="property",
    show_default=True,
    help="Batches of identifies, one identify per request, lists, or Cohort Webhooks.",
)
@click.option("--users", type=click.IntRange(1), help="Size of a synthetic cohort. [default: 1000]")
@click.option(
    "--ids",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file of user ids, one per line.",
)
@click.option(
    "--cohort", metavar="NAME:ID", help="The id follows the last colon. [default: from the seed]"
)
@click.option(
    "--syncs", type=click.IntRange(1), default=1, show_default=True, help="How many syncs to run."
)
@click.option(
    "--churn",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Share of the members who leave between two syncs; as many other users enter (with --ids: "
    "former members only).",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Users per request.",
)
@click.option(
    "--threads", type=click.IntRange(1), default=4, show_default=True, help="Concurrent requests."
)
@click.option(
    "--retries",
    type=click.IntRange(0),
    default=8,
    show_default=True,
    help="Retries per request, after 1, 2, 4, … 128 seconds.",
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
    help="Multiplies the waits between retries and syncs: with 0.001 an hour takes 3.6 s.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds to wait for a reply. "
    f"[default: {DEFAULT_TIMEOUT_SECONDS:g}; webhook: {WEBHOOK_TIMEOUT_SECONDS:g}]",
)
@click.option(
    "--path",
    callback=percent_encoded,
    help="Replaces the documented path (/lists, with --mode list).",
)
@click.option(
    "--misbehave",
    metavar="FAULTS",
    help="Inject faults into a share of the requests: 'all', 'all=0.1' or "
    f"'late=0.02,drop-reply=0.1' (default share: {DEFAULT_RATE:g}). "
    f"Faults: {', '.join(kind.replace('_', '-') for kind in FAULT_KINDS)}.",
)
@click.option("--seed", type=int, help="Makes a run repeatable. [default: random, and printed]")
@reader_options
@click.option(
    "--upstream-port",
    type=click.IntRange(0, 65535),
    help="Also serve Amplitude's Behavioral Cohorts API on this port of 127.0.0.1, 0 for a free "
    "one, until the last sync is done.",
)
@click.option(
    "--upstream-stays", is_flag=True, help="Keep serving the API after the last sync, until Ctrl-C."
)
@upstream_options
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
    upstream_port: int | None,
    upstream_stays: bool,
    upstream_keys: str,
    anonymous: int,
    job_seconds: float,
    upstream_faults: tuple[str, ...],
    as_json: bool,
) -> None:
    """Sync a cohort to the receiver at URL: first in full, then only the changes."""
    if users is not None and ids is not None:
        raise click.UsageError("--users and --ids are mutually exclusive.")
    if app_id is not None and auth != "headers":
        raise click.UsageError("--app-id is only sent with --auth headers.")
    if seed is None:
        seed = secrets.randbelow(2**31)
    try:
        faults = parse_faults(misbehave) if misbehave else None
        user_ids = read_ids(ids) if ids else None
    except (ValueError, InvalidIdFile, OSError) as error:
        raise click.UsageError(str(error)) from None
    if cohort is None:
        cohort = f"Simulated cohort:sim{seed}"
    name, cohort_id = parse_cohort(cohort)
    if user_ids is None:
        simulated = Cohort.synthetic(name, cohort_id, users or 1000, churn=churn, seed=seed)
    else:
        simulated = Cohort(name, cohort_id, user_ids, churn=churn, seed=seed)
    if timeout is None:
        timeout = WEBHOOK_TIMEOUT_SECONDS if mode == "webhook" else DEFAULT_TIMEOUT_SECONDS
    target = Target(url, key, app_id, auth, timeout, parse_headers(header))
    check_reachable(target)
    reader = open_reader(reader_url, reader_key, key_prefix, app, partitions)
    upstream = None
    if upstream_port is not None:
        upstream = open_upstream(upstream_port, upstream_keys, job_seconds, upstream_faults)
        frequency = FREQUENCIES[cadence]
        upstream.cohorts[cohort_id] = ServedCohort(
            cohort_id, name, anonymous=anonymous, syncs=[SyncInfo(frequency=frequency)]
        )
        click.echo(f"Behavioral Cohorts API: {upstream.url}", err=True)
    progress = SyncProgress(Console(stderr=True))

    def on_plan(number: int, entered: int, left: int) -> None:
        if upstream:
            upstream.computed(cohort_id, [simulated.ids[user] for user in simulated.members])
        progress.start_sync(number, entered + left, cohort_sync.stats)

    def on_result(result: SyncResult) -> None:
        if upstream:
            upstream.synced(cohort_id, succeeded=result.succeeded)

    cohort_sync = CohortSync(
        target,
        simulated,
        mode=mode,
        batch_size=batch_size,
        threads=threads,
        retries=retries,
        time_scale=time_scale,
        seed=seed,
        faults=faults,
        path=path,
        on_plan=on_plan,
        on_result=on_result,
    )
    results: list[SyncResult] = []
    comparison, example, reader_error = None, "", ""
    with cohort_sync, upstream or contextlib.nullcontext():
        # A failing reader must not suppress the report of what was sent.
        try:
            if reader is not None:
                cohort_sync.expected.set_initial(_read_traits(reader, cohort_sync.cohort))
            results = _run(cohort_sync, progress, syncs, CADENCES[cadence])
            if reader is not None and not cohort_sync.stop.is_set():
                comparison = compare(cohort_sync.expected, reader)
                example = _example(reader, cohort_sync.cohort)
        except ReaderError as error:
            reader_error = str(error)
        except KeyboardInterrupt:
            cohort_sync.stop.set()
        exit_code = _exit_code(results, cohort_sync, comparison, reader_error)
        problem = _wrong_address(results, cohort_sync)
        if as_json:
            report = _report(cohort_sync, results, comparison, reader_error, seed, exit_code)
            click.echo(json.dumps(report, indent=2))
        elif problem:
            exit_with(exit_code, problem)
        else:
            Console().print(summary(cohort_sync, results, comparison, reader_error))
            click.echo(f"Repeat with --seed {seed}" + (f". {example}" if example else ""))
            if reader_url and comparison and comparison.wrong and not comparison.found:
                click.echo(nothing_found(reader_url), err=True)
        if upstream and upstream_stays and not cohort_sync.stop.is_set():
            sys.stdout.flush()
            wait_for_ctrl_c()
    sys.exit(exit_code)


def _run(
    cohort_sync: CohortSync, progress: SyncProgress, syncs: int, every: float
) -> list[SyncResult]:
    """Run the syncs in a thread and show their progress. Ctrl-C lets open requests finish."""
    results: list[SyncResult] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            results.extend(cohort_sync.run(syncs, every))
        except Exception as error:  # noqa: BLE001 - raised again below
            errors.append(error)
        finally:
            done.set()

    # An event, because after Ctrl-C during Thread.join() a running thread can look finished.
    done = threading.Event()
    with progress:
        threading.Thread(target=work, daemon=True).start()
        try:
            while not done.wait(0.1):
                progress.update(cohort_sync.stats)
        except KeyboardInterrupt:
            cohort_sync.stop.set()
            with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C ends the wait
                done.wait(cohort_sync.target.timeout)
        progress.update(cohort_sync.stats)
    if errors:
        raise errors[0]
    return results


def _exit_code(
    results: list[SyncResult],
    cohort_sync: CohortSync,
    comparison: Comparison | None,
    reader_error: str,
) -> ExitCode:
    if cohort_sync.stop.is_set():
        return ExitCode.INTERRUPTED
    if any(result.unauthorised for result in results):
        return ExitCode.UNAUTHORISED
    if comparison is not None and not comparison.ok:
        return ExitCode.DIFFERENT
    if reader_error:
        return ExitCode.USAGE
    if cohort_sync.stats.gave_up or cohort_sync.stats.changes_rejected:
        return ExitCode.FAILED
    return ExitCode.OK


def _wrong_address(results: list[SyncResult], cohort_sync: CohortSync) -> str | None:
    """The reason why nothing was delivered, if the key or a path is wrong; else None."""
    stats = cohort_sync.stats
    if any(result.unauthorised for result in results):
        return refused_key(cohort_sync.target, stats.last_problem)
    if stats.statuses.keys() == {404} and not stats.changes_acknowledged:
        return (
            "Every request got a 404. "
            f"Is {cohort_sync.target.url} the receiver's base address, and --path its path?"
        )
    return None


def _report(
    cohort_sync: CohortSync,
    results: list[SyncResult],
    comparison: Comparison | None,
    reader_error: str,
    seed: int,
    exit_code: ExitCode,
) -> dict[str, Any]:
    cohort = cohort_sync.cohort
    report: dict[str, Any] = {
        "url": cohort_sync.target.url,
        "mode": cohort_sync.mode,
        "cohort": {
            "name": cohort.name,
            "id": cohort.cohort_id,
            "trait": cohort.trait,
            "members": len(cohort.members),
        },
        "users_to_sync": cohort.users_so_far,
        "changes_to_send": sum(result.entered + result.left for result in results),
        "seed": seed,
        "outcome": exit_code.name.lower(),
        "syncs": [
            {
                "number": result.number,
                "late_retries_only": result.late_only,
                "entered": result.entered,
                "left": result.left,
                "seconds": round(result.seconds, 3),
                "succeeded": result.succeeded,
                "problems": result.problems,
            }
            for result in results
        ],
        **cohort_sync.stats.as_dict(),
        "list_ids": sorted(cohort_sync.list_ids),
    }
    if comparison is not None:
        report["read_back"] = {
            "users_compared": comparison.checked,
            "users_wrong": comparison.wrong,
            "users_uncertain": comparison.uncertain,
            "examples": [str(example) for example in comparison.examples],
        }
    if reader_error:
        report["reader_error"] = reader_error
    return report


def _read_traits(reader: Reader, cohort: Cohort) -> list[Value | str]:
    """Read the cohort's trait of every user, which an earlier run may have set."""
    return [
        traits.get(cohort.trait)
        for start in range(0, len(cohort.ids), USERS_PER_READ)
        for traits in reader.traits(cohort.ids[start : start + USERS_PER_READ])
    ]


def _example(reader: Reader, cohort: Cohort) -> str:
    user = cohort.ids[cohort.members[0]]
    value = reader.traits([user])[0].get(cohort.trait)
    return f"User {user} has {cohort.trait!r}: {format_value(value)}"
