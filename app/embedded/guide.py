"""What a run tells its user: the address, the keys, and how to try it."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from app.embedded.data import DataDir
from app.embedded.store import url_of
from app.settings import Settings
from app.store.keys import Keys

# The user and the trait of the test request in Amplitude's document.
USER_ID = "test.user@email.com"
IDENTIFY = {"traits": {"cohort name:123": True}, "type": "identify", "userId": USER_ID}
COHORT_PATH = "/api/v1/integration/amplitude/cohort"


@dataclass(frozen=True)
class Guide:
    """What the text is made of.

    Attributes:
        url: the service's address.
        settings: those in force.
        made_keys: by scope, the keys that were made here. The user's own are never printed.
        data: the folder that holds them.
        embedded: whether the store is the one in that folder, or the user's own.
    """

    url: str
    settings: Settings
    made_keys: dict[str, str]
    data: DataDir
    embedded: bool

    def text(self) -> str:
        lines = ["", f"The dashboard: {self.url}/"]
        if "admin" in self.made_keys:
            lines.append(f"Log in with the {self._key('admin')}")
        lines += [f"The HTTP API, to read and try: {self.url}/docs", ""]
        lines.append(f"Cohort Receiver listens on {self.url}. Stop it with Ctrl-C.")
        if "ingest" in self.made_keys:
            lines.append(f"Cohorts are sent with the {self._key('ingest')}")
        lines += ["", "Send a cohort change, as in Amplitude's document:", "", *self._curl(), ""]
        lines += [
            'The reply is {"accepted":1,"changed":1,"rejected":0,"errors":[]}; a repeat has '
            '"changed":0.',
            "Then read the trait in the store:",
            "",
            f"  {self._python()}",
            "",
            "or, where redis-cli is installed:",
            "",
            f"  {self._redis_cli()}",
            "",
            "Or play Amplitude, in a second terminal, with a hundred thousand users:",
            "",
            *self._simulator(),
            "",
        ]
        return "\n".join(lines)

    def _key(self, scope: str) -> str:
        file = _short(self.data.key_file(scope))
        return f"{scope} key: {self.made_keys[scope]} (kept in {file})"

    def _curl(self) -> list[str]:
        key = self.made_keys.get("ingest", "YOUR_KEY")
        return [
            f"  curl -u {shlex.quote(key + ':')} \\",
            "    -H 'Content-Type: application/json' \\",
            f"    -d {shlex.quote(json.dumps(IDENTIFY))} \\",
            f"    {self.url}{COHORT_PATH}",
        ]

    def _simulator(self) -> list[str]:
        key = self.made_keys.get("ingest", "YOUR_KEY")
        store = '"$REDIS_URL"'
        if self.embedded:
            store = shlex.quote(url_of(self.data.socket.resolve()))
        return [
            f"  {shlex.quote(_short(Path(sys.executable)))} -m simulator sync {self.url} \\",
            f"    --key {shlex.quote(key)} --users 100000 \\",
            f"    --reader {store} --app {shlex.quote(self._app_id())} \\",
            f"    --key-prefix {shlex.quote(self.settings.key_prefix)} "
            f"--partitions {self.settings.store_partitions}",
        ]

    def _app_id(self) -> str:
        """The app of the key that sends: the user's first, or the one that was made."""
        return (self.settings.api_keys or self.settings.admin_api_keys)[0].app_id

    def _user_key(self) -> str:
        keys = Keys(self.settings.key_prefix, self.settings.store_partitions)
        return keys.user(self._app_id(), USER_ID)

    def _python(self) -> str:
        if self.embedded:
            socket = json.dumps(_short(self.data.socket.resolve()))
            client = f"redis.Redis(unix_socket_path={socket}, decode_responses=True)"
            imports = "redis"
        else:
            client = 'redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)'
            imports = "os, redis"
        code = f'import {imports}; print({client}.hgetall("{self._user_key()}"))'
        return f"{shlex.quote(_short(Path(sys.executable)))} -c {shlex.quote(code)}"

    def _redis_cli(self) -> str:
        where = '-u "$REDIS_URL"'
        if self.embedded:
            where = f"-s {shlex.quote(_short(self.data.socket.resolve()))}"
        return f"redis-cli {where} HGETALL {shlex.quote(self._user_key())}"


def _short(path: Path) -> str:
    """The path as one would type it in the current folder."""
    folder = Path.cwd()
    return os.path.relpath(path, folder) if path.is_relative_to(folder) else str(path)
