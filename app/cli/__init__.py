"""The operator's commands: ``flask --app wsgi cohorts …``, ``users …`` and so on."""

from __future__ import annotations

from flask import Flask

from app.cli import audit, cohorts, config, keys, store, users

COMMANDS = (config.config,)
GROUPS = (cohorts.cohorts, users.users, keys.keys, store.store, audit.audit)


def init_app(app: Flask) -> None:
    """Register every group of commands."""
    for command in (*GROUPS, *COMMANDS):
        app.cli.add_command(command)
