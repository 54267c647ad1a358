"""Followers of the change feed: server-sent events, read from the store once for all of them.

Each worker has one reader for each app that is followed. It asks the store for news several times
a second, turns them into events once, and keeps the last of them; a follower takes what follows on
its own place. Who is further behind reads from the store until the place is among those kept. So
no follower holds a connection to the store, and ten cost little more than one.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import gevent
import structlog
from gevent.event import Event
from gevent.socket import wait_read
from orjson import Fragment, dumps

from app.errors import TooManyFollowers
from app.store import Change, EntryId, Place, PlaceLost, StoreError
from app.store.change_stream import ChangeStream, Page
from app.web.http.cursors import place_cursor

# Seconds between two looks for news, and changes that one look takes.
POLL_SECONDS = 0.1
CHANGES_PER_READ = 100
# Bytes of events that are kept for followers, for each app.
KEPT_BYTES = 8 << 20
# Seconds between two looks whether to end, and to the next attempt when the store can't be had.
LOOK_SECONDS = 1.0
# A stream ends after this many seconds, so that a key that was revoked does not read for ever.
# The client comes back by itself, and where it was.
LONGEST_SECONDS = 15 * 60.0

# Of all apps together: the worker's other connections are left for requests.
MOST_FOLLOWERS = 900

# With the place where the stream begins: a client that comes back before the first event, too,
# goes on from there.
_BEGINNING = b"retry: 1000\nid: %b\n\n"
_HEARTBEAT = b": nothing new\n\n"


def shown(change: Change) -> dict[str, Any]:
    """A change as replies and events show it."""
    return {
        "cohortId": change.cohort_id,
        "change": change.change,
        "at": change.at_ms,
        "userIds": Fragment(change.users),
    }


def events(place: Place, changes: list[Change]) -> bytes:
    """Changes that follow on a place as server-sent events. The id of each is the place after."""
    after = list(place)
    parts = []
    for change in changes:
        after[change.partition] = change.id
        cursor = place_cursor(after).encode()
        parts.append(b"id: %b\nevent: change\ndata: %b\n\n" % (cursor, dumps(shown(change))))
    return b"".join(parts)


class _Block(NamedTuple):
    """News of one look: the places around them, and the events for who stands at ``before``."""

    before: Place
    changes: list[Change]
    after: Place
    events: bytes


class _Reader:
    """The one reader of an app's change feed in this process."""

    def __init__(self, changes: ChangeStream, app_id: str) -> None:
        self.followers = 0
        self.news = Event()
        self._changes = changes
        self._app_id = app_id
        self._place: Place | None = None
        self._blocks: deque[_Block] = deque()
        self._bytes = 0
        self._log = structlog.get_logger()

    def run(self) -> None:
        """Read for as long as anybody follows."""
        while self.followers:
            pause = LOOK_SECONDS
            try:
                pause = self._look()
            except StoreError as error:
                self._log.warning("change feed waits", reason=error.reason, app=self._app_id)
            except Exception:  # noqa: BLE001
                # A bug must not end the feed of all followers without a word.
                self._log.exception("change feed failed", app=self._app_id)
                self._start_afresh()
            gevent.sleep(pause)

    def next_to(self, place: Place) -> tuple[bytes, Place] | None:
        """The next events after a place, none at the end; or None where they aren't kept."""
        first = self._blocks[0].before if self._blocks else self._place
        if first is None or not _reached(place, first):
            return None
        following = None
        for block in reversed(self._blocks):
            if _reached(place, block.after):
                break
            following = block
        if following is None:
            return b"", place
        if following.before == place:
            return following.events, following.after
        # Read from the store a little further than one of the looks, in some of the partitions.
        news = [change for change in following.changes if change.id > _at(place, change)]
        pairs = zip(place, following.after, strict=True)
        return events(place, news), tuple(max(a, b) for a, b in pairs if a and b)

    def _look(self) -> float:
        if self._place is None:
            self._place = self._changes.newest(self._app_id)
        try:
            page = self._changes.read(self._app_id, self._place, limit=CHANGES_PER_READ)
        except PlaceLost:
            # The feed was trimmed faster than it was read. Followers find out for themselves.
            self._start_afresh()
            return 0
        if page.changes:
            self._keep(self._place, page)
        self._place = page.place
        return 0 if page.more else POLL_SECONDS

    def _keep(self, before: Place, page: Page) -> None:
        block = _Block(before, page.changes, page.place, events(before, page.changes))
        self._blocks.append(block)
        self._bytes += len(block.events)
        while self._bytes > KEPT_BYTES and len(self._blocks) > 1:
            self._bytes -= len(self._blocks.popleft().events)
        self.news.set()
        self.news = Event()

    def _start_afresh(self) -> None:
        self._place = None
        self._blocks.clear()
        self._bytes = 0


def _reached(place: Place, other: Place) -> bool:
    """Whether a place lies at another one or after it, in every partition."""
    return all(
        a is not None and b is not None and a >= b for a, b in zip(place, other, strict=True)
    )


def _at(place: Place, change: Change) -> EntryId:
    at = place[change.partition]
    assert at is not None, "a place that is among those kept is known in every partition"
    return at


class Feed:
    """The followers of this process.

    Attributes:
        is_open: whether to go on; False while the process is about to end.
    """

    def __init__(
        self, changes: ChangeStream, *, heartbeat_seconds: float, max_followers: int
    ) -> None:
        self.is_open: Callable[[], bool] = lambda: True
        self._changes = changes
        self._heartbeat_seconds = heartbeat_seconds
        self._max_followers = max_followers
        self._readers: dict[str, _Reader] = {}

    def follow(
        self, app_id: str, place: Place, connection: socket.socket | None = None
    ) -> Iterator[bytes]:
        """Server-sent events of all changes after a place, each once, as they happen.

        Args:
            connection: the client's, to notice at once when it hangs up.

        Raises:
            PlaceLost: at once, where changes after the place are gone.
            TooManyFollowers: at once.
            StoreError: at once; later the stream goes on when the store is back.
        """
        first = self._changes.read(app_id, place, limit=CHANGES_PER_READ)
        of_each = {app: reader.followers for app, reader in self._readers.items()}
        if of_each.get(app_id, 0) >= self._max_followers or sum(of_each.values()) >= MOST_FOLLOWERS:
            raise TooManyFollowers(self._max_followers)
        return self._events(app_id, first, connection)

    def _events(
        self, app_id: str, first: Page, connection: socket.socket | None
    ) -> Iterator[bytes]:
        ends = time.monotonic() + LONGEST_SECONDS
        with self._reader(app_id) as reader, _hangup(connection) as hung_up:
            beginning = _BEGINNING % place_cursor(first.before).encode()
            yield beginning + events(first.before, first.changes)
            place, said = first.place, time.monotonic()
            while self.is_open() and not hung_up.is_set() and time.monotonic() < ends:
                news, before = reader.news, place
                try:
                    data, place = reader.next_to(place) or self._catch_up(app_id, place)
                except PlaceLost:
                    return  # the client comes back, and is told
                except StoreError:
                    data = b""
                if data:
                    yield data
                    said = time.monotonic()
                elif time.monotonic() - said >= self._heartbeat_seconds:
                    yield _HEARTBEAT
                    said = time.monotonic()
                elif place == before:
                    gevent.wait([news, hung_up], LOOK_SECONDS, count=1)
        if connection is not None and not self.is_open():
            # Or the server would wait for the client's next request on it before it ends.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)

    def _catch_up(self, app_id: str, place: Place) -> tuple[bytes, Place]:
        page = self._changes.read(app_id, place, limit=CHANGES_PER_READ)
        return events(place, page.changes), page.place

    @contextmanager
    def _reader(self, app_id: str) -> Iterator[_Reader]:
        reader = self._readers.get(app_id)
        if reader is None:
            reader = self._readers[app_id] = _Reader(self._changes, app_id)
        reader.followers += 1
        if reader.followers == 1:
            gevent.spawn(reader.run)
        try:
            yield reader
        finally:
            reader.followers -= 1
            if not reader.followers:
                del self._readers[app_id]


@contextmanager
def _hangup(connection: socket.socket | None) -> Iterator[Event]:
    """Set once the client has closed its side of the connection."""
    hung_up = Event()

    def watch() -> None:
        try:
            wait_read(connection.fileno())  # type: ignore[union-attr]
            # What else a client may send here is of no use; only the heartbeat notices it leave.
            if not connection.recv(1, socket.MSG_PEEK):  # type: ignore[union-attr]
                hung_up.set()
        except OSError:
            hung_up.set()

    watcher = gevent.spawn(watch) if connection is not None else None
    try:
        yield hung_up
    finally:
        if watcher is not None:
            watcher.kill()
