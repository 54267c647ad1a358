"""What ``make run`` prints: the address, the keys, and commands to try."""

from __future__ import annotations

import json
import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from app.embedded.data_dir import DataDir
from app.embedded.store import url_of
from app.settings import Settings
from app.store.keys import Keys

# The user and the trait of the test request in Amplitude's documentation.
USER_ID = "test.user@email.com"
IDENTIFY = {"traits": {"cohort name:123": True}, "type": "identify", "userId": USER_ID}
COHORT_PATH = "/api/v1/integration/amplitude/cohort"

TEMPLATE = """
The dashboard: {url}/{admin}
The API reference: {url}/docs

Cohort Receiver listens on {url}. Press Ctrl-C to stop it.{ingest}

Send a cohort change, as in Amplitude's documentation:

  curl -u {user}: \\
    -H 'Content-Type: application/json' \\
    -d {body} \\
    {url}{path}

The reply is {{"accepted":1,"changed":1,"rejected":0,"errors":[]}}. A repeat has "changed":0.
Then read the trait from the store:

  {python} -c {code}

or, if redis-cli is installed:

  redis-cli {redis_cli} HGETALL {user_key}
{simulator}"""

SIMULATOR = """
In a second terminal, simulate an Amplitude sync of 100,000 users:

  {python} -m simulator sync {url} \\
    --key {user} --users 100000 \\
    --reader {reader} --app {app} \\
    --key-prefix {prefix} --partitions {partitions}
"""


def guide(
    url: str, settings: Settings, keys: dict[str, str], data: DataDir, socket: Path | None
) -> str:
    """The text for one run.

    Args:
        url: the service's address.
        settings: those in force.
        keys: the generated keys, by scope. The user's own keys are never printed.
        data: the folder that holds them.
        socket: where the embedded store listens; None for the user's own store.
    """

    def key_line(scope: str, text: str) -> str:
        if scope not in keys:
            return ""
        return f"\n{text} {scope} key: {keys[scope]} (stored in {_short(data.key_file(scope))})"

    app_id = (settings.api_keys or settings.admin_api_keys)[0].app_id
    user_key = Keys(settings.key_prefix, settings.store_partitions).user(app_id, USER_ID)
    if socket:
        redis_cli, reader = f"-s {shlex.quote(_short(socket))}", shlex.quote(url_of(socket))
        imports, address = "redis", json.dumps(url_of(socket))
    else:
        redis_cli, reader = '-u "$REDIS_URL"', '"$REDIS_URL"'
        imports, address = "os, redis", 'os.environ["REDIS_URL"]'
    client = f"redis.Redis.from_url({address}, decode_responses=True)"
    python = shlex.quote(_short(Path(sys.executable)))
    user = shlex.quote(keys.get("ingest", "YOUR_KEY"))
    simulator = SIMULATOR.format(
        url=url,
        user=user,
        python=python,
        reader=reader,
        app=shlex.quote(app_id),
        prefix=shlex.quote(settings.key_prefix),
        partitions=settings.store_partitions,
    )
    return TEMPLATE.format(
        url=url,
        admin=key_line("admin", "Log in with the"),
        ingest=key_line("ingest", "Amplitude sends the"),
        user=user,
        body=shlex.quote(json.dumps(IDENTIFY)),
        path=COHORT_PATH,
        python=python,
        code=shlex.quote(f'import {imports}; print({client}.hgetall("{user_key}"))'),
        redis_cli=redis_cli,
        user_key=shlex.quote(user_key),
        # It is a separate package, which every clone of the repository includes.
        simulator=simulator if find_spec("simulator") else "",
    )


def _short(path: Path) -> str:
    """The path as one would type it in the current folder."""
    folder = Path.cwd()
    return os.path.relpath(path, folder) if path.is_relative_to(folder) else str(path)
