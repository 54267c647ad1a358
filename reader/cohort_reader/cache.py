"""A least-recently-used cache of answers from the store."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple


class CachedAnswer(NamedTuple):
    """A value, and when the store was asked for it."""

    asked_at: float
    value: Any


class Flight:
    """A question that is being asked; others who want the same answer wait for it.

    Attributes:
        landed: an event, of ``threading`` or ``asyncio``.
        answer: None until it has landed, or if it failed.
        error: why it failed, if it did. If neither is set, it was abandoned.
    """

    __slots__ = ("answer", "error", "landed")

    def __init__(self, landed: Any) -> None:
        self.landed = landed
        self.answer: CachedAnswer | None = None
        self.error: Exception | None = None


class Cache:
    """Up to ``max_entries`` answers by question, and questions being asked. Thread-safe."""

    def __init__(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self._lock = threading.Lock()
        self._answers: OrderedDict[Hashable, CachedAnswer] = OrderedDict()
        self._flights: dict[Hashable, Flight] = {}

    def get(self, question: Hashable) -> CachedAnswer | None:
        """The cached answer, if any."""
        with self._lock:
            answer = self._answers.get(question)
            if answer is not None:
                self._answers.move_to_end(question)
            return answer

    def put(self, question: Hashable, answer: CachedAnswer) -> None:
        """Cache an answer, unless a newer one is cached. Evicts the least recently used."""
        with self._lock:
            cached = self._answers.get(question)
            if cached is None or cached.asked_at <= answer.asked_at:
                self._answers[question] = answer
            self._answers.move_to_end(question)
            if len(self._answers) > self.max_entries:
                self._answers.popitem(last=False)

    def start(
        self, questions: Sequence[Any], landed: Any
    ) -> tuple[dict[Any, Flight], dict[Any, Flight]]:
        """Start flights for the questions that nobody is asking.

        ``landed`` makes an event. Returns the started flights, which the caller must
        :meth:`finish`, and those of others for the remaining questions.
        """
        own: dict[Any, Flight] = {}
        others: dict[Any, Flight] = {}
        event = landed()
        with self._lock:
            for question in questions:
                flight = self._flights.get(question)
                if flight is None:
                    own[question] = self._flights[question] = Flight(event)
                else:
                    others[question] = flight
        return own, others

    def finish(self, flights: dict[Any, Flight]) -> None:
        """Announce that flights have landed."""
        with self._lock:
            for question in flights:
                del self._flights[question]
        for flight in flights.values():
            flight.landed.set()
