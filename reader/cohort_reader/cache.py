"""A least-recently-used cache of answers from the store."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, NamedTuple


class CachedAnswer(NamedTuple):
    """A value, and when the store was asked for it."""

    asked_at: float
    value: Any


class Cache:
    """Up to ``max_entries`` answers by question. Thread-safe."""

    def __init__(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self._lock = threading.Lock()
        self._answers: OrderedDict[Hashable, CachedAnswer] = OrderedDict()

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
