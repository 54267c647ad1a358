"""``cohort-receiver audit …``"""

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

audit = Group(
    "audit", help="Show who deleted cohorts, erased users or changed keys.", epilog=EXIT_CODES
)


@audit.command("list", epilog=EXIT_CODES)
@app_id_option("all apps")
@click.option("--action", help="Only this action, such as erase_user.")
@click.option(
    "--last",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Maximum number of entries.",
)
@json_option
def list_actions(app_id: str | None, action: str | None, last: int, as_json: bool) -> None:
    """List the actions of operators, oldest first.

    BY is the API, the dashboard or a command. WHO is the id of the key as in keys list, or the
    system user who ran the command. ABOUT names users by the same hash as the sync history. An
    entry is written before its action, except for release_store, so the action may have failed or
    found nothing. The latest 10,000 are kept.
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
