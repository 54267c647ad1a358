"""Check, before the service starts, that there is a key that may send cohorts.

Runs in a process of its own, ``python -m app.server.preflight``: gunicorn's master must not import
anything that uses sockets before its workers have patched them for gevent.
"""

from __future__ import annotations

import subprocess
import sys

from app.settings import Settings

FOUND, NONE, UNKNOWN = 0, 3, 4


def keys_in_store() -> bool:
    """Whether the store holds a key that may send cohorts. True as well where it can't be asked:
    the service then starts, and answers 503 until it can.
    """
    look = subprocess.run([sys.executable, "-m", "app.server.preflight"], check=False)
    if look.returncode == UNKNOWN:
        print(  # noqa: T201
            "cohort-receiver: API_KEYS: no key is set, and the store can't be asked whether it "
            "holds one. Requests are answered with 503 until it can.",
            file=sys.stderr,
        )
    return look.returncode in (FOUND, UNKNOWN)


def main() -> int:
    """Look. Returns what was seen as the exit code."""
    from app.auth.keyring import ADMIN, INGEST
    from app.store import Store, StoreError, connect

    settings = Settings.from_environ()
    store = Store(connect(settings), prefix=settings.key_prefix)
    try:
        keys = store.api_keys.all()
    except StoreError:
        return UNKNOWN
    return FOUND if any(key.scope in (INGEST, ADMIN) for key in keys if key.in_force()) else NONE


if __name__ == "__main__":
    sys.exit(main())
