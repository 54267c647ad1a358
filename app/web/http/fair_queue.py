"""A fair queue: a worker processes a few requests at a time, and waiting apps take turns.

Without this, one busy app starves the others: with 64 batches of one app waiting, a single request
of another app would be the 65th. See docs/decisions/many-apps.md.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from flask import Flask, g, request
from gevent.event import Event

from app.services import services

Item = TypeVar("Item")

# Requests with these methods have no body. Other requests begin their turn once their body has
# arrived, so that a stalled sender holds up nobody.
_WITHOUT_BODY = frozenset(("GET", "HEAD", "DELETE"))


class _Lane(NamedTuple):
    """A queue for turns. An app has two: one for whole requests, one for pieces.

    Long requests, such as exports and imports, are processed in pieces, with a turn for each. In a
    single lane, a request would wait for a piece of each of the app's long ones.
    """

    app_id: str
    is_piece: bool


class FairQueue:
    """The fair queue of one worker.

    Args:
        at_once: requests that are processed at the same time.
        of_one_app: how many of them may be of one app. Always fewer than ``at_once`` if possible.
    """

    def __init__(self, at_once: int, of_one_app: int) -> None:
        self._free = at_once
        self._of_one_app = min(of_one_app, max(1, at_once - 1))
        self._working: defaultdict[str, int] = defaultdict(int)
        # The lane whose turn is next comes first.
        self._waiting: dict[_Lane, deque[Event]] = {}

    def take(self, app_id: str, *, is_piece: bool = False) -> None:
        """Wait for a turn of this app and begin it."""
        lane = _Lane(app_id, is_piece)
        if self._has_room(lane) and lane not in self._waiting:
            self._begin(lane)
            return
        place = Event()
        self._waiting.setdefault(lane, deque()).append(place)
        try:
            place.wait()
        except BaseException:
            if place.is_set():
                self.give_back(app_id)
            else:
                self._leave(lane, place)
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
            if following in self._waiting:  # move the lane to the end of the queue
                self._waiting[following] = self._waiting.pop(following)
            self._begin(following)
            place.set()

    @contextmanager
    def piece(self, app_id: str) -> Iterator[None]:
        """Hold a turn during a ``with`` block, for one piece of a long request."""
        self.take(app_id, is_piece=True)
        try:
            yield
        finally:
            self.give_back(app_id)

    def each(self, app_id: str, items: Iterable[Item]) -> Iterator[Item]:
        """Yield ``items``, taking a turn to produce each: for replies that are streamed."""
        making = iter(items)
        while True:
            with self.piece(app_id):
                try:
                    item = next(making)
                except StopIteration:
                    return
            yield item

    def _has_room(self, lane: _Lane) -> bool:
        return self._free > 0 and self._working[lane.app_id] < self._of_one_app

    def _begin(self, lane: _Lane) -> None:
        self._free -= 1
        self._working[lane.app_id] += 1

    def _leave(self, lane: _Lane, place: Event) -> None:
        line = self._waiting[lane]
        line.remove(place)
        if not line:
            del self._waiting[lane]


def init_app(app: Flask, queue: FairQueue) -> None:
    """Make each authenticated request wait for its turn."""

    @app.before_request
    def begin_without_body() -> None:
        if request.environ["REQUEST_METHOD"] in _WITHOUT_BODY and "caller" in g:
            begin()

    @app.teardown_request
    def end_with_request(error: BaseException | None) -> None:
        end()


def end() -> None:
    """End the current request's turn, if it has one."""
    app_id = g.pop("turn", None)
    if app_id is not None:
        services().fair_queue.give_back(app_id)


def in_pieces(items: Iterable[Item]) -> Iterator[Item]:
    """End the current request's turn, and take one to produce each of ``items``."""
    end()
    return services().fair_queue.each(g.caller.app_id, items)


def begin() -> None:
    """Begin the current request's turn, unless it has begun. It ends with the request, or with
    :func:`end`.
    """
    context: Any = g._get_current_object()
    caller = context.get("caller")
    if caller is not None and "turn" not in context:
        context.arrived = time.monotonic()
        services().fair_queue.take(caller.app_id)
        context.turn = caller.app_id
