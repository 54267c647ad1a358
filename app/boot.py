"""What is looked at before the service starts.

``python -m app.boot`` checks the settings. gunicorn's configuration does so too, but gunicorn reads
``WEB_CONCURRENCY`` by itself before that, and fails with a traceback where it is no number.

``python -m app.boot keys`` looks into the store for keys: in a process of its own, as gunicorn's
master must not import what uses sockets before its workers have replaced these by gevent's.
"""

from __future__ import annotations

import subprocess
import sys

from app.settings import BadSettings, Settings

FOUND, NONE, UNKNOWN = 0, 3, 4


def keys_in_store() -> bool:
    """Whether the store holds a key that may send cohorts. True as well where it can't be asked:
    the service then starts, and answers 503 until it can.
    """
    look = subprocess.run([sys.executable, "-m", "app.boot", "keys"], check=False)
    if look.returncode == UNKNOWN:
        print(  # noqa: T201
            "cohort-receiver: API_KEYS: no key is set, and the store can't be asked whether it "
            "holds one. Requests are answered with 503 until it can.",
            file=sys.stderr,
        )
    return look.returncode in (FOUND, UNKNOWN)


def main(words: list[str]) -> int:
    """Do what is asked for. Returns the exit code."""
    try:
        settings = Settings.from_environ()
        settings.check_store()
    except BadSettings as error:
        for line in str(error).splitlines():
            print(f"cohort-receiver: {line}", file=sys.stderr)  # noqa: T201
        return 1
    return _look_for_keys(settings) if words == ["keys"] else 0


def _look_for_keys(settings: Settings) -> int:
    from app.keyring import ADMIN, INGEST
    from app.store import Store, StoreError, connect

    store = Store(connect(settings), prefix=settings.key_prefix)
    try:
        keys = store.api_keys.all()
    except StoreError:
        return UNKNOWN
    return FOUND if any(key.scope in (INGEST, ADMIN) for key in keys if key.in_force()) else NONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
