"""`simulator upstream`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from ..cohort import Cohort, InvalidIdFile, read_ids
from ..upstream import ServedCohort, SyncInfo
from .options import open_upstream, parse_cohort, upstream_options, wait_for_ctrl_c


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    help="Port to listen on; 0 picks a free one.",
)
@click.option("--users", type=click.IntRange(1), help="Size of a synthetic cohort. [default: 1000]")
@click.option(
    "--ids",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file of user ids, one per line.",
)
@click.option(
    "--cohort",
    metavar="NAME:ID",
    default="Simulated cohort:sim1",
    show_default=True,
    help="The id follows the last colon.",
)
@click.option(
    "--frequency",
    type=click.Choice(("minute", "hourly", "daily", "none")),
    default="hourly",
    show_default=True,
    help="How often the cohort is synced; none reports no sync.",
)
@click.option(
    "--seed",
    type=int,
    default=1,
    show_default=True,
    help="Serves the users of a `sync` with the same seed.",
)
@upstream_options
def upstream(
    port: int,
    users: int | None,
    ids: Path | None,
    cohort: str,
    frequency: Any,
    seed: int,
    upstream_keys: str,
    anonymous: int,
    job_seconds: float,
    upstream_faults: tuple[str, ...],
) -> None:
    """Serve Amplitude's Behavioral Cohorts API on 127.0.0.1 until Ctrl-C.

    It serves the cohort that the first sync of `sync` sends with the same --cohort, --seed, and
    --users or --ids, and reports that it has just been synced.
    """
    if users is not None and ids is not None:
        raise click.UsageError("--users and --ids are mutually exclusive.")
    name, cohort_id = parse_cohort(cohort)
    try:
        members = read_ids(ids) if ids else None
    except (InvalidIdFile, OSError) as error:
        raise click.UsageError(str(error)) from None
    if members is None:
        simulated = Cohort.synthetic(name, cohort_id, users or 1000, seed=seed)
        members = [simulated.ids[user] for user in simulated.members]
    served = open_upstream(port, upstream_keys, job_seconds, upstream_faults)
    now = time.time()
    syncs = [] if frequency == "none" else [SyncInfo(frequency=frequency, last_successful=now)]
    served.cohorts[cohort_id] = ServedCohort(
        cohort_id, name, members, anonymous=anonymous, syncs=syncs, last_computed=now
    )
    with served:
        click.echo(f"Behavioral Cohorts API: {served.url}")
        wait_for_ctrl_c()
