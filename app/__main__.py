"""``cohort-receiver``, or ``python -m app``: run the service, and the operator's commands."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from flask import Flask
from flask.cli import ScriptInfo

from app import __version__, cli, create_app
from app.settings import BadSettings, Settings

# The folder that holds this package.
ROOT = Path(__file__).resolve().parents[1]
MAX_PORT = 65535


def _app() -> Flask:
    try:
        return create_app()
    except BadSettings as error:
        raise click.ClickException(str(error)) from None


@click.group("cohort-receiver")
@click.version_option(__version__, message="%(version)s")
@click.pass_context
def main(context: click.Context) -> None:
    """Receive Amplitude's behavioural cohorts and keep them in Redis or Valkey.

    Settings come from environment variables; --help works without any.
    """
    context.obj = ScriptInfo(create_app=_app)


def _check_port(_: click.Context, __: click.Parameter, address: str | None) -> str | None:
    """Refuse a port that is too high: gunicorn would print a traceback."""
    port = (address or "").rpartition(":")[2]
    if port.isdecimal() and int(port) > MAX_PORT:
        raise click.BadParameter(f"the port must be at most {MAX_PORT}.")
    return address


@main.command("serve")
@click.option(
    "--bind",
    metavar="ADDRESS",
    callback=_check_port,
    help="Where to listen. Default: 0.0.0.0:PORT.",
)
def serve(bind: str | None) -> None:
    """Run the service until Ctrl-C or SIGTERM. It needs REDIS_URL and at least one API key."""
    try:
        Settings.from_environ()
    except BadSettings as error:
        # gunicorn itself would end in a traceback if WEB_CONCURRENCY is invalid.
        sys.exit("\n".join(f"cohort-receiver: {line}" for line in str(error).splitlines()))
    if marks := os.environ.get("STORE_MARKS_FILE"):
        os.environ["STORE_MARKS_FILE"] = str(Path(marks).absolute())
    # gunicorn imports from the current folder first, which might hold another `app`.
    os.chdir(ROOT)
    command = [sys.executable, "-m", "gunicorn", "--config", "app/server/gunicorn_conf.py"]
    command += [*(["--bind", bind] if bind else []), "app:create_app()"]
    os.execv(sys.executable, command)  # noqa: S606  # nosec B606


@main.command("run")
def run() -> None:
    """Try the service on this machine, with an embedded store, until Ctrl-C.

    Data and generated keys are kept in DATA_DIR, by default the folder var.
    """
    from app.embedded.__main__ import main as supervise

    sys.exit(supervise())


for _command in (*cli.GROUPS, *cli.COMMANDS):
    main.add_command(_command)


if __name__ == "__main__":
    main()
