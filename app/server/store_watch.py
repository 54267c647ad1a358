"""Notice that the store lost its data or went back to an earlier state of itself.

Each worker remembers the mark of every partition (app/store/losses.py), and writes the marks to a
file for the worker that replaces it. The file outlives the service if STORE_MARKS_FILE is set.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import structlog

from app.settings import Settings, store_location
from app.store import Loss, Mark, Partition, Store, StoreError, Tuning

# A mark is advanced this often if nothing changes; it is compared more often: every second, or in
# turn if there are more partitions than Tuning.marks_per_round.
ADVANCE_SECONDS = 10.0
# Pause after a step, as a multiple of its duration.
PAUSE_FACTOR = 2


class StoreWatch:
    """Compares the store with what this process remembers of it.

    Args:
        memory: where to remember it across restarts.
    """

    def __init__(self, store: Store, tuning: Tuning, memory: MarksFile) -> None:
        self._store = store
        self._per_round = tuning.marks_per_round
        self.memory = memory
        self._log = structlog.get_logger()
        self._token = ""
        self._marks: dict[Partition, Mark] = {}
        self._advanced: dict[Partition, float] = {}
        self._next = 0
        self._server_examined = False

    def work(self) -> None:
        """Compare some partitions, and mark the cohorts that a loss concerns."""
        if not self._token:  # not before the process has forked
            self._token = secrets.token_hex(8)
            self._marks = self.memory.read()
        if not self._server_examined:
            with suppress(StoreError):
                self._examine_server()
        with suppress(StoreError):
            self._compare()
        with suppress(StoreError):
            self._mark_cohorts()

    def _examine_server(self) -> None:
        """Warn once if the store may evict data, or keeps nothing on disk."""
        self._store.server_info.ping()
        self._server_examined = True  # some hosted stores refuse INFO, now and later
        if self._store.server_info.memory().may_evict:
            self._log.warning("store may evict data", reason="store_may_evict")
        if self._store.server_info.is_persistent() is False:
            self._log.warning("store keeps nothing on disk", reason="store_not_persistent")

    def _compare(self) -> None:
        app_ids = {*self._store.apps(), *(partition.app_id for partition in self._marks)}
        partitions = self._store.losses.partitions(sorted(app_ids))
        if self._next >= len(partitions):
            self._next = 0
        some = partitions[self._next : self._next + self._per_round]
        self._next += len(some)
        before = dict(self._marks)
        try:
            for partition in some:
                with suppress(StoreError):  # others may be available
                    self._compare_one(partition)
        finally:
            if self._marks != before:
                self.memory.write(self._marks)

    def _compare_one(self, partition: Partition) -> None:
        acknowledged, known = self._store.memberships.acknowledged, self._marks.get(partition)
        confirmed = self._store.memberships.confirmations
        newest, confirmations = acknowledged.get(partition), confirmed.get(partition)
        now = time.monotonic()
        advance = (
            newest is not None
            or confirmations is not None
            or now - self._advanced.get(partition, -math.inf) >= ADVANCE_SECONDS
        )
        loss, mark = self._store.losses.compare(
            *(partition, known, newest, self._token),
            advance=advance,
            confirmations=confirmations,
        )
        if advance:
            self._advanced[partition] = now
        # A new identity means a loss, whichever process found it. What was acknowledged before is
        # part of that loss, and is not compared again.
        is_new = mark is not None and known is not None and mark.identity != known.identity
        if is_new or acknowledged.get(partition) == newest:
            acknowledged.pop(partition, None)
        if is_new or confirmed.get(partition) == confirmations:
            confirmed.pop(partition, None)
        if mark is None:
            return
        if mark != known:
            self._marks[partition] = mark
        if loss:
            self._log.error(
                "store lost data", kind=loss, app=partition.app_id, partition=partition.number
            )
            for found in self._store.losses.of([partition.app_id]):
                self._store.losses.spread(found)

    def _mark_cohorts(self) -> None:
        losses = self._store.losses
        for app_id in [loss.app_id for loss in losses.unfinished(self._store.apps())]:
            if not losses.lease(app_id, self._token):
                continue
            # Read again: while other apps had their turn, an administrator may have forgiven it.
            for loss in losses.unfinished([app_id]):
                self._mark_cohorts_of(loss)

    def _mark_cohorts_of(self, loss: Loss) -> None:
        losses, marked, before = self._store.losses, 0, time.monotonic()
        for cohorts in losses.mark_cohorts(loss):
            marked += cohorts
            time.sleep((time.monotonic() - before) * PAUSE_FACTOR)
            losses.lease(loss.app_id, self._token)
            before = time.monotonic()
        self._log.info("cohorts marked after a loss", app=loss.app_id, cohorts=marked)


class MarksFile:
    """Remembers marks in a file, for one store. An unreadable file is an empty one.

    All workers write it, so marks may be old: they then miss some losses, but report no false one.

    Attributes:
        path: None to remember nothing.
    """

    def __init__(self, path: Path | None, address: str, prefix: str, partitions: int) -> None:
        self.path = path
        # Another address, prefix or number of partitions is another store: nothing was lost.
        where = f"{_without_credentials(address)} {prefix} {partitions}"
        self._store = hashlib.sha256(where.encode()).hexdigest()[:16]

    @classmethod
    def from_settings(cls, settings: Settings) -> MarksFile:
        """The file that is configured, if any."""
        path = settings.store_marks_file
        address, prefix = settings.redis_url or "", settings.key_prefix
        return cls(Path(path) if path else None, address, prefix, settings.store_partitions)

    def read(self) -> dict[Partition, Mark]:
        """The remembered marks."""
        if self.path is None:
            return {}
        try:
            document = orjson.loads(self.path.read_bytes())
            if document["store"] != self._store:
                return {}
            return {
                Partition(app_id, int(number)): Mark(str(identity), int(position), str(token))
                for app_id, number, identity, position, token in document["marks"]
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._complain("store marks not read", error)
            return {}

    def write(self, marks: Mapping[Partition, Mark]) -> None:
        """Replace the remembered marks. Without room on the disk, the earlier ones stay."""
        if self.path is None:
            return
        rows = [[*partition, *mark] for partition, mark in marks.items()]
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            temporary.write_bytes(orjson.dumps({"store": self._store, "marks": rows}))
            temporary.replace(self.path)
        except OSError as error:
            self._complain("store marks not written", error)

    def _complain(self, event: str, error: Exception) -> None:
        """Warn: without the file, a loss between two runs of the service goes unnoticed."""
        reason = getattr(error, "strerror", None) or type(error).__name__
        structlog.get_logger().warning(event, file=str(self.path), reason=reason)


def _without_credentials(address: str) -> str:
    """The address without credentials, which may be rotated; ``unix`` for a socket."""
    if address.startswith("unix://"):
        return "unix"
    if "+sentinel://" in address:
        return "".join(store_location(address))
    parts = urlsplit(address)
    return f"{parts.hostname}:{parts.port}{parts.path}"
