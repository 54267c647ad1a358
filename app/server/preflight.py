"""Check before the start that there is an API key that may send cohorts.

``python -m app.server.preflight`` runs as a separate process: gunicorn's master must not import
anything that uses sockets, because its workers patch them for gevent.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from app.settings import Settings, store_address

FOUND, NONE, UNKNOWN = 0, 3, 4


def keys_in_store() -> bool:
    """Whether the store has a key that may send cohorts; True if the store is unavailable.

    The service then starts, and replies 503 until the store is available.
    """
    # In the folder of this package, as `-m` imports from the current one first.
    command = [sys.executable, "-m", "app.server.preflight"]
    check = subprocess.run(command, cwd=Path(__file__).parents[2], check=False)  # noqa: S603
    if check.returncode == UNKNOWN:
        print(  # noqa: T201
            "cohort-receiver: API_KEYS: no key is set, and the store, which may have one, cannot "
            "be read. Until it can, the service replies 503.",
            file=sys.stderr,
        )
    return check.returncode in (FOUND, UNKNOWN)


def main() -> int:
    """Check. Returns the exit code."""
    from app.auth.keyring import ADMIN, INGEST
    from app.store import Store, StoreError, connect

    settings = Settings.from_environ()
    store = Store(connect(settings), prefix=settings.key_prefix)
    try:
        keys = store.api_keys.all()
    except StoreError as error:
        print(f"cohort-receiver: {store_address(settings.redis_url)}: {error}", file=sys.stderr)  # noqa: T201
        return UNKNOWN
    return FOUND if any(key.scope in (INGEST, ADMIN) for key in keys if key.in_force()) else NONE


if __name__ == "__main__":
    sys.exit(main())
