"""Background work on resyncs: finish those that were left unfinished, or have become quiet."""

from __future__ import annotations

import time
from collections.abc import Iterator

import structlog

from app.store import Attempts, ResyncPlace, Store, StoreError

# How long to work before asking the store again which resyncs are due.
ROUND_SECONDS = 1.0
# Pause after each step, as a multiple of its duration, so that ingest stays ahead.
PAUSE_FACTOR = 1


class ResyncWorker:
    """Advances resyncs, those of different cohorts in turn. Several processes may do it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._running: dict[ResyncPlace, Iterator[None]] = {}
        self._unexpected: Exception | None = None
        self._log = structlog.get_logger()

    def work(self) -> None:
        """Work for a second at most; called every second. A failing resync is tried again.

        Raises:
            Exception: the first unexpected error, after the other resyncs had their turn.
        """
        self._unexpected = None
        try:
            self._find()
        except StoreError as error:
            self._log.warning("resyncs paused", **error.log_fields)
        ends = time.monotonic() + ROUND_SECONDS
        while self._running and time.monotonic() < ends:
            for place in list(self._running):
                self._advance(place)
        if self._unexpected is not None:
            raise self._unexpected

    def _find(self) -> None:
        attempts = Attempts()
        for app_id in self._store.apps():
            with attempts.one():
                for place in self._store.resyncs.due(app_id):
                    self._running.setdefault(place, self._store.resyncs.steps(place))
        attempts.raise_first()

    def _advance(self, place: ResyncPlace) -> None:
        began = time.monotonic()
        try:
            if self._store.resyncs.lease(place):
                next(self._running[place])
            else:  # another process works on it
                del self._running[place]
        except StopIteration:
            del self._running[place]
        except StoreError as error:
            del self._running[place]
            self._log.warning("resync paused", **error.log_fields, cohort=place.cohort_id)
        except Exception as error:  # noqa: BLE001
            del self._running[place]
            self._unexpected = self._unexpected or error
        time.sleep((time.monotonic() - began) * PAUSE_FACTOR)
