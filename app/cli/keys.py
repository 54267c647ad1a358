"""``cohort-receiver keys …``"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

import click

from app.auth.audit_trail import record
from app.auth.keyring import INGEST, SCOPES, Caller, environment_keys, make_key
from app.cli.group import (
    EXIT_CODES,
    Group,
    app_id_option,
    json_option,
    one_app,
    operator,
    print_json,
    shown,
    table,
    the_store,
    when,
)
from app.services import services
from app.store import Store, StoredKey

_HEADERS = ("ID", "APP", "SCOPE", "FROM", "STATUS", "CREATED", "EXPIRES", "LAST USED")
_LABEL = re.compile(r"[A-Za-z0-9_.-]{1,48}")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_MAX_SECONDS = 100 * 366 * 24 * 3600

keys = Group("keys", help="Create, list, expire and revoke API keys.", epilog=EXIT_CODES)


class _When(click.ParamType[int | None]):
    """A duration (90d, 12h, 30m, 45s), a time in UTC (2030-01-31, 2030-01-31T12:00) or never."""

    name = "when"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        if value == "never":
            return None
        now = time.time_ns() // 1_000_000
        if match := re.fullmatch(r"(\d{1,10})([smhd])", value):
            seconds = int(match[1]) * _UNITS[match[2]]
            if seconds > _MAX_SECONDS:
                self.fail("is more than a hundred years away; use never.", param, ctx)
            return now + seconds * 1000
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            self.fail(
                "must be a duration such as 90d, 12h or 30m, a date such as 2030-01-31, or never.",
                param,
                ctx,
            )
        at_ms = int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
        if at_ms < now:
            self.fail("is in the past. To end a key immediately, revoke it.", param, ctx)
        return at_ms


def _check_label(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    if value and not _LABEL.fullmatch(value):
        raise click.BadParameter(f"must match {_LABEL.pattern}")
    return value


@keys.command("create", epilog=EXIT_CODES)
@app_id_option()
@click.option(
    "--scope",
    type=click.Choice(SCOPES),
    default=INGEST,
    show_default=True,
    help="ingest sends cohorts, read reads them, admin permits everything.",
)
@click.option(
    "--label", default="", callback=_check_label, help="Who uses the key; its id begins with this."
)
@click.option(
    "--expires",
    type=_When(),
    metavar="WHEN",
    help="A duration such as 90d, 12h or 30m, or a date in UTC. Default: never.",
)
@json_option
def create(app_id: str | None, scope: str, label: str, expires: int | None, as_json: bool) -> None:
    """Create a key and print it, once: the store keeps only its digest.

    Workers accept it within two seconds. The app may be new.
    """
    store = the_store()
    key, kept = make_key(one_app(store, app_id, may_be_new=True), scope, label, expires)
    about = {"key_id": kept.id, "scope": scope, "expires": expires}
    record(store, operator(), "create_key", kept.app_id, **about)
    if not store.api_keys.create(kept):
        raise click.ClickException("A key with this id exists. Run the command again.")
    store.replication.confirm()
    if as_json:
        print_json({"key": key, **_from_store(store, kept)})
        return
    click.echo(key)
    click.echo(
        f"The key {kept.id} of the app {kept.app_id} has the scope {scope} and "
        f"{_ends(expires)}. It cannot be shown again.",
        err=True,
    )


@keys.command("list", epilog=EXIT_CODES)
@app_id_option("all apps")
@json_option
def list_keys(app_id: str | None, as_json: bool) -> None:
    """List the keys in the store and in the environment of this command.

    LAST USED may be half a minute old. Expired and revoked keys are listed for 90 days.
    """
    store = the_store()
    used = store.api_keys.used()
    found = [_from_environment(caller, used) for caller in _environment_keys()]
    found += [_from_store(store, key, used) for key in store.api_keys.all()]
    found = [key for key in found if app_id in (None, key["app_id"])]
    if as_json:
        print_json(found)
    else:
        table(_HEADERS, [[_row(key) for key in found]])


@keys.command("expire", epilog=EXIT_CODES)
@click.argument("key_id", metavar="ID")
@click.argument("expires", type=_When(), metavar="WHEN")
def expire(key_id: str, expires: int | None) -> None:
    """Set when a key expires, for example after its successor is in use.

    WHEN is a duration such as 7d, 12h or 30m, a date in UTC, or never.
    """
    store = the_store()
    key = _find(store, key_id)
    if key.revoked_ms is not None:
        raise click.ClickException("The key was revoked, which is permanent.")
    record(store, operator(), "expire_key", key.app_id, key_id=key.id, expires=expires)
    store.api_keys.expire(key_id, expires)
    store.replication.confirm()
    click.echo(f"The key {key_id} {_ends(expires)}.")


@keys.command("revoke", epilog=EXIT_CODES)
@click.argument("key_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Don't ask for confirmation.")
def revoke(key_id: str, yes: bool) -> None:
    """End a key permanently. Workers refuse it within two seconds."""
    store = the_store()
    key = _find(store, key_id)
    if not yes:
        used = store.api_keys.used().get(key_id)
        # Uses in the last half minute may not be stored yet.
        last = "never used, or only in the last 30 s" if used is None else f"last used {when(used)}"
        click.confirm(f"Revoke the key {key.id} ({last})?", abort=True, err=True)
    record(store, operator(), "revoke_key", key.app_id, key_id=key.id)
    store.api_keys.revoke(key_id)
    store.replication.confirm()
    click.echo(f"The key {key_id} is revoked.")


def apps_with_keys(store: Store) -> set[str]:
    """The apps that have an API key."""
    of_environment = {caller.app_id for caller in _environment_keys()}
    return of_environment | {key.app_id for key in store.api_keys.all()}


def _environment_keys() -> list[Caller]:
    return environment_keys(services().settings)


def _find(store: Store, key_id: str) -> StoredKey:
    for key in store.api_keys.all():
        if key.id == key_id:
            return key
    if any(caller.label == key_id for caller in _environment_keys()):
        raise click.ClickException(
            "The key is set in the environment: remove it there, and restart the service."
        )
    raise click.ClickException(f"Unknown key: {shown(key_id)}.")


def _from_store(
    store: Store, key: StoredKey, used: dict[str, int] | None = None
) -> dict[str, object]:
    return {
        "id": key.id,
        "app_id": key.app_id,
        "scope": key.scope,
        "from": "store",
        "status": key.status(),
        "created": key.created_ms,
        "expires": key.ended_ms(),
        "last_used": (used or {}).get(key.id),
    }


def _from_environment(caller: Caller, used: dict[str, int]) -> dict[str, object]:
    return {
        "id": caller.label,
        "app_id": caller.app_id,
        "scope": caller.scope,
        "from": "environment",
        "status": "active",
        "created": None,
        "expires": None,
        "last_used": used.get(caller.label),
    }


def _row(key: dict[str, object]) -> tuple[object, ...]:
    times = (key["created"], key["expires"], key["last_used"])
    return (
        *(key[name] for name in ("id", "app_id", "scope", "from", "status")),
        *(when(ms) if isinstance(ms, int) else "-" for ms in times),
    )


def _ends(ms: int | None) -> str:
    return "never expires" if ms is None else f"expires at {when(ms)}"
