"""Turns: a worker works on some requests at a time, and takes those that wait app by app.

Else whoever sends most is served most: with sixty-four batches of one app in line before the
worker, and before the store's connections, a single call of another app would be the sixty-fifth.
docs/decisions/many-apps.md says why it is done so.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from flask import Flask, g, request
from gevent.event import Event

from app.services import services

Item = TypeVar("Item")

# Calls by these methods have no body to wait for. Others begin their turn when theirs is here: a
# sender that stalls in the middle of it takes no turn from anybody.
_WITHOUT_BODY = frozenset(("GET", "HEAD", "DELETE"))


class Turns:
    """The turns of one worker.

    Args:
        at_once: requests that are worked on at a time.
        of_one_app: of these, at most so many of one app; fewer than all where that can be.
    """

    def __init__(self, at_once: int, of_one_app: int) -> None:
        self._free = at_once
        self._of_one_app = min(of_one_app, max(1, at_once - 1))
        self._working: Counter[str] = Counter()
        # In the order in which the apps are next.
        self._waiting: dict[str, deque[Event]] = {}

    def take(self, app_id: str) -> None:
        """Begin a turn; waits until it is this app's."""
        if self._has_room(app_id) and app_id not in self._waiting:
            self._begin(app_id)
            return
        place = Event()
        self._waiting.setdefault(app_id, deque()).append(place)
        try:
            place.wait()
        except BaseException:
            if place.is_set():
                self.give_back(app_id)
            else:
                self._leave(app_id, place)
            raise

    def give_back(self, app_id: str) -> None:
        """End a turn."""
        self._free += 1
        self._working[app_id] -= 1
        if not self._working[app_id]:
            del self._working[app_id]
        while following := next(filter(self._has_room, self._waiting), None):
            place = self._waiting[following][0]
            self._leave(following, place)
            if following in self._waiting:  # the others are next
                self._waiting[following] = self._waiting.pop(following)
            self._begin(following)
            place.set()

    @contextmanager
    def turn(self, app_id: str) -> Iterator[None]:
        """A turn for the time of a ``with`` block."""
        self.take(app_id)
        try:
            yield
        finally:
            self.give_back(app_id)

    def each(self, app_id: str, items: Iterable[Item]) -> Iterator[Item]:
        """The same items, with a turn for the making of each: for what is made piece by piece."""
        making = iter(items)
        while True:
            with self.turn(app_id):
                try:
                    item = next(making)
                except StopIteration:
                    return
            yield item

    def _has_room(self, app_id: str) -> bool:
        return self._free > 0 and self._working[app_id] < self._of_one_app

    def _begin(self, app_id: str) -> None:
        self._free -= 1
        self._working[app_id] += 1

    def _leave(self, app_id: str, place: Event) -> None:
        line = self._waiting[app_id]
        line.remove(place)
        if not line:
            del self._waiting[app_id]


def init_app(app: Flask, turns: Turns) -> None:
    """Give each request of an app its turn. After its credentials are checked."""

    @app.before_request
    def begin_without_body() -> None:
        if request.environ["REQUEST_METHOD"] in _WITHOUT_BODY and "caller" in g:
            begin()

    @app.teardown_request
    def end(error: BaseException | None) -> None:
        app_id = g.pop("turn", None)
        if app_id is not None:
            turns.give_back(app_id)


def begin() -> None:
    """Begin the turn of the current request, unless it has one. It ends with the request."""
    now: Any = g._get_current_object()
    caller = now.get("caller")
    if caller is not None and "turn" not in now:
        services().fair_queue.take(caller.app_id)
        now.turn = caller.app_id
