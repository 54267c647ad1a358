"""`simulator bench-sink`."""

from __future__ import annotations

import json
import subprocess
import sys

import click

from ..cohort import Cohort
from ..cohort_sync import MODES, CohortSync, Mode
from ..connection import Target
from .exit_codes import ExitCode
from .options import exit_with

MAX_SINGLE_USERS = 20_000


@click.command("bench-sink")
@click.option(
    "--users",
    type=click.IntRange(1),
    default=1_000_000,
    show_default=True,
    help=f"Users to send in each mode; in single mode at most {MAX_SINGLE_USERS:,}.",
)
@click.option(
    "--threads", type=click.IntRange(1), default=4, show_default=True, help="Concurrent requests."
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Users per request.",
)
def bench_sink(users: int, threads: int, batch_size: int) -> None:
    """Measure how fast the simulator sends, to a local sink that does no work.

    Prints one JSON object.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "simulator.sink"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C in a terminal is for this process
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            target = Target(f"http://127.0.0.1:{int(process.stdout.readline())}", "key")
            figures = {mode: _send(target, mode, users, threads, batch_size) for mode in MODES}
        except KeyboardInterrupt:
            process.kill()
            sys.exit(ExitCode.INTERRUPTED)
        process.stdin.close()
        received = json.loads(process.stdout.read())
    sent = sum(figure["requests"] for figure in figures.values())
    click.echo(json.dumps({"modes": figures, "sink": received}, indent=2))
    if received["requests"] != sent:
        exit_with(
            ExitCode.FAILED, f"{sent} requests were sent, the sink received {received['requests']}"
        )


def _send(
    target: Target, mode: Mode, users: int, threads: int, batch_size: int
) -> dict[str, float]:
    """Send one sync and return its figures."""
    size = min(users, MAX_SINGLE_USERS) if mode == "single" else users
    cohort = Cohort.synthetic("Bench", "1", size)
    with CohortSync(target, cohort, mode=mode, threads=threads, batch_size=batch_size) as sync:
        result = sync.sync()
    return {
        "users": size,
        "requests": sync.stats.requests,
        "seconds": round(result.seconds, 3),
        "users_per_second": round(size / result.seconds),
    }
