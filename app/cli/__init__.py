"""The operator's commands: ``flask --app wsgi cohorts …``, ``users …`` and so on."""

from __future__ import annotations

from flask import Flask

from app.cli import cohorts, keys, store, users

GROUPS = (cohorts.cohorts, users.users, keys.keys, store.store)


def init_app(app: Flask) -> None:
    """Register every group of commands."""
    for group in GROUPS:
        app.cli.add_command(group)
