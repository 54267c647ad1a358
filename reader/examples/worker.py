"""A worker that maintains a copy of all cohort memberships in its own database, here SQLite.

    REDIS_URL=redis://localhost:6379/0 python worker.py members.sqlite

Run any number of workers on the same database; they share the changes and may be killed at any
time. On SIGTERM and Ctrl-C, a worker finishes the current change and exits.

The column ``version`` makes repeated deliveries harmless: a change is applied only if it is newer
than the last one applied.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sqlite3
import sys

from cohort_reader import Follower, MembershipChange, connect

SCHEMA = """
CREATE TABLE IF NOT EXISTS membership (
    cohort_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    member INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    version TEXT NOT NULL,
    PRIMARY KEY (cohort_id, user_id)
)
"""

APPLY = """
INSERT INTO membership (cohort_id, user_id, member, at_ms, version) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (cohort_id, user_id) DO UPDATE
SET member = excluded.member, at_ms = excluded.at_ms, version = excluded.version
WHERE excluded.version > membership.version
"""


def apply(database: sqlite3.Connection, change: MembershipChange) -> None:
    """Apply one change atomically; applying it again has no effect."""
    with database:  # one transaction
        database.executemany(
            APPLY,
            [
                (change.cohort_id, user_id, change.entered, change.at_ms, change.version)
                for user_id in change.user_ids
            ],
        )


def main(path: str) -> None:
    """Follow changes until the process is asked to stop."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    client = connect(os.environ["REDIS_URL"], timeout_seconds=5)
    follower = Follower(client, "members", app=os.environ.get("COHORT_APP", "default"), start="all")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: follower.stop())
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as database:
        with database:
            database.execute(SCHEMA)
        logging.info("following")
        follower.run(lambda change: apply(database, change))
    logging.info("stopped")


if __name__ == "__main__":
    if len(sys.argv) != 2 or "REDIS_URL" not in os.environ:
        sys.exit("usage: REDIS_URL=redis://… python worker.py DATABASE")
    main(sys.argv[1])
