"""The operator's commands: ``cohort-receiver cohorts …``, ``users …`` and so on."""

from __future__ import annotations

from flask import Flask

from app.cli import audit, cohorts, config, keys, notify, resyncs, store, upstream, users

COMMANDS = (config.config,)
cohorts.cohorts.add_command(resyncs.resync)
cohorts.cohorts.add_command(resyncs.import_file)
cohorts.cohorts.add_command(upstream.reconcile)
cohorts.cohorts.add_command(upstream.read_upstream)

GROUPS = (cohorts.cohorts, users.users, keys.keys, store.store, audit.audit, notify.notify)


def init_app(app: Flask) -> None:
    """Register every group of commands."""
    for command in (*GROUPS, *COMMANDS):
        app.cli.add_command(command)
