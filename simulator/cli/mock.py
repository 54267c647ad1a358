"""`simulator mock`."""

from __future__ import annotations

from typing import Any

import click

from ..connection import Target
from ..curl_commands import curl_commands
from .options import check_target, parse_cohort, parse_headers, path_options, target_options


@click.command()
@target_options()
@click.option(
    "--cohort",
    metavar="NAME:ID",
    default="cohort name:123",
    show_default=True,
    help="The id follows the last colon.",
)
@click.option(
    "--user", default="test.user@email.com", show_default=True, help="The user in the payloads."
)
@path_options
def mock(
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
    """Print Amplitude's documented mock payloads as curl commands for the receiver at URL."""
    target = Target(url, key or "TEST_API_KEY", app_id, auth, extra_headers=parse_headers(header))
    check_target(target)
    name, cohort_id = parse_cohort(cohort)
    for description, command in curl_commands(
        target,
        cohort_name=name,
        cohort_id=cohort_id,
        user_id=user,
        paths=(path, lists_path, webhook_path),
    ):
        click.echo(f"# {description}\n{command}\n")
