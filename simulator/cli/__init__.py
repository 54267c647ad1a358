"""The command line: `python -m simulator sync|upstream|certify|mock|bench-sink`."""

from __future__ import annotations

import click

from .bench_sink import bench_sink
from .certify import certify
from .exit_codes import HELP
from .mock import mock
from .sync import sync
from .upstream import upstream

__all__ = ["main"]


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=HELP,
)
def main() -> None:
    """Play Amplitude's side: send cohorts to a receiver, and check what it does with them.

    URL is always the receiver's base address, such as http://127.0.0.1:8000.
    """


for command in (sync, upstream, certify, mock, bench_sink):
    main.add_command(command)
