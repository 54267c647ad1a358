"""``cohort-receiver config``"""

from __future__ import annotations

import os

import click
from flask.cli import with_appcontext

from app.cli.group import EXIT_CODES, TypedCommand, json_option, print_json, table
from app.services import services
from app.settings import masked

_HEADERS = ("SETTING", "VALUE", "FROM")


@click.command("config", cls=TypedCommand, epilog=EXIT_CODES)
@json_option
@with_appcontext
def config(as_json: bool) -> None:
    """Print all settings, with keys and passwords masked.

    These are the settings that a service started in this environment would have. Probable mistakes
    are reported on standard error. The command does not access the store.
    """
    settings = services().settings
    values = masked(settings)
    for line in settings.warnings(os.environ):
        click.echo(line, err=True)
    if as_json:
        print_json(values)
        return
    rows = [
        (name, value, "environment" if os.environ.get(name) else "default")
        for name, value in values.items()
    ]
    table(_HEADERS, [rows])
