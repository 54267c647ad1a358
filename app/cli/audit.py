"""``flask --app wsgi audit …``"""

from __future__ import annotations

from typing import Any

import click

from app.cli.group import (
    EXIT_CODES,
    Group,
    app_id_option,
    json_option,
    print_json,
    table,
    the_store,
    when,
)

_HEADERS = ("WHEN", "ACTION", "BY", "WHO", "APP", "ABOUT")
_COLUMNS = ("action", "by", "who", "app")

audit = Group("audit", help="See who has deleted, erased, or changed keys.", epilog=EXIT_CODES)


@audit.command("list", epilog=EXIT_CODES)
@app_id_option("all of them")
@click.option("--action", help="Only this one, such as erase_user.")
@click.option(
    "--last", type=click.IntRange(1), default=100, show_default=True, help="How many, at most."
)
@json_option
def list_actions(app_id: str | None, action: str | None, last: int, as_json: bool) -> None:
    """List what operators have done, the latest last.

    BY is the API, the dashboard or a command; WHO is the key's id as in keys list, or for a command
    the name of the system's user. ABOUT names a user by the hash that the sync history has too. An
    entry is written before the thing is done: there may be some that failed, or found nothing. The
    latest 10,000 are kept.
    """
    found = [
        entry
        for entry in the_store().audit_trail.all()
        if app_id in (None, entry.get("app")) and action in (None, entry.get("action"))
    ][-last:]
    if as_json:
        print_json(found)
    else:
        table(_HEADERS, [[_row(entry) for entry in found]])


def _row(entry: dict[str, Any]) -> tuple[object, ...]:
    at = entry.get("at")
    about = (
        f"{name}={when(value) if name == 'expires' and isinstance(value, int) else value}"
        for name, value in entry.items()
        if name not in ("at", *_COLUMNS)
    )
    return (
        when(at) if isinstance(at, int) else "-",
        *(entry.get(name, "-") for name in _COLUMNS),
        " ".join(about),
    )
