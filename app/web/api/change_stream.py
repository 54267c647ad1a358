"""Followers of the change stream: server-sent events, read from the store once for all of them.

Each worker has one reader per app that is followed. It polls the store several times a second,
renders new changes as events once, and keeps the latest. A follower takes the events after its own
position, or reads from the store until it has caught up with those kept. So no follower holds a
connection to the store, and ten cost little more than one.
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

from app.errors import CursorExpired, TooManyFollowers
from app.store import ChangeEntry, EntryId, FeedPosition, PositionLost, StoreError
from app.store.change_stream import ChangePage, ChangeStream
from app.web.http.cursors import stream_cursor

# How often the store is polled, and the most changes that one poll reads.
POLL_SECONDS = 0.1
CHANGES_PER_READ = 100
# The size of the events kept for followers, per app.
KEPT_BYTES = 8 << 20
# How often a stream checks whether to end; also the pause while the store is unavailable.
CHECK_SECONDS = 1.0
# A stream ends after this time, so that a revoked key does not keep reading. The client reconnects
# by itself and resumes at its position.
MAX_STREAM_SECONDS = 15 * 60.0

# Of all apps together; the worker's other connections are left for requests.
MAX_FOLLOWERS = 900

# The position at which the stream begins, so that a client that reconnects before the first change
# resumes there. Clients ignore an id without data.
_BEGINNING = b"retry: 1000\nid: %b\nevent: position\ndata: %b\n\n"
_HEARTBEAT = b": nothing new\n\n"
# Has no id: the client reconnects with that of its last event, and gets this error as a 410.
_EXPIRED = b"event: cursor_expired\ndata: %b\n\n" % dumps(
    {"reason": CursorExpired.reason, "detail": CursorExpired.detail}
)


def shown(change: ChangeEntry) -> dict[str, Any]:
    """A change as it appears in replies and events."""
    return {
        "cohortId": change.cohort_id,
        "change": change.change,
        "at": change.at_ms,
        "userIds": Fragment(change.users),
    }


def events(position: FeedPosition, changes: list[ChangeEntry]) -> bytes:
    """Changes after a position as server-sent events. The id of each is the position after it."""
    after = list(position)
    parts = []
    for change in changes:
        after[change.partition] = change.id
        cursor = stream_cursor(after).encode()
        parts.append(b"id: %b\nevent: change\ndata: %b\n\n" % (cursor, dumps(shown(change))))
    return b"".join(parts)


def _beginning(position: FeedPosition) -> bytes:
    cursor = stream_cursor(position)
    return _BEGINNING % (cursor.encode(), dumps({"next": cursor}))


class _Block(NamedTuple):
    """The result of one poll, with the positions around it. ``events`` continue from ``before``."""

    before: FeedPosition
    changes: list[ChangeEntry]
    after: FeedPosition
    events: bytes


class _Reader:
    """The only reader of an app's change stream in this process.

    Attributes:
        news: set and replaced once followers have something to do.
        beginnings: how often it began to read at the end of the stream. If it did so because the
            store was emptied or restored, the store may no longer have the positions of followers:
            each must be compared with the stream once more.
    """

    def __init__(self, changes: ChangeStream, app_id: str) -> None:
        self.followers = 0
        self.news = Event()
        self.beginnings = 0
        self._changes = changes
        self._app_id = app_id
        self._position: FeedPosition | None = None
        self._blocks: deque[_Block] = deque()
        self._bytes = 0
        self._log = structlog.get_logger()

    def run(self) -> None:
        """Poll the store as long as there are followers."""
        while self.followers:
            pause = CHECK_SECONDS
            try:
                pause = self._poll()
            except StoreError as error:
                self._log.warning(
                    "change stream waits for the store", **error.log_fields, app=self._app_id
                )
            except Exception:  # noqa: BLE001
                # A bug must not silently end the streams of all followers.
                self._log.exception("change stream failed", app=self._app_id)
                self._restart()
            gevent.sleep(pause)

    def is_at(self, position: FeedPosition) -> bool:
        """Whether the latest poll ended at this position."""
        return position == self._position

    def next_after(self, position: FeedPosition) -> tuple[bytes, FeedPosition] | None:
        """The next events after a position, empty at the end; None if they are not kept."""
        first = self._blocks[0].before if self._blocks else self._position
        if first is None or not _reached(position, first):
            return None
        following = None
        for block in reversed(self._blocks):
            if _reached(position, block.after):
                break
            following = block
        if following is None:
            return b"", position
        if following.before == position:
            return following.events, following.after
        # The follower has read from the store: in some partitions, past the start of this block.
        news = [change for change in following.changes if change.id > _at(position, change)]
        pairs = zip(position, following.after, strict=True)
        return events(position, news), tuple(max(a, b) for a, b in pairs if a and b)

    def _poll(self) -> float:
        if self._position is None:
            self._position = self._changes.newest(self._app_id)
            self.beginnings += 1
            self._wake_followers()
        try:
            page = self._changes.read(self._app_id, self._position, limit=CHANGES_PER_READ)
        except PositionLost:
            # Trimmed faster than it was read, or the store was emptied or restored. Each follower
            # finds out whether its own position is lost.
            self._restart()
            return 0
        if page.changes:
            self._keep(self._position, page)
        self._position = page.after
        return 0 if page.more else POLL_SECONDS

    def _keep(self, before: FeedPosition, page: ChangePage) -> None:
        block = _Block(before, page.changes, page.after, events(before, page.changes))
        self._blocks.append(block)
        self._bytes += len(block.events)
        while self._bytes > KEPT_BYTES and len(self._blocks) > 1:
            self._bytes -= len(self._blocks.popleft().events)
        self._wake_followers()

    def _wake_followers(self) -> None:
        self.news.set()
        self.news = Event()

    def _restart(self) -> None:
        self._position = None
        self._blocks.clear()
        self._bytes = 0


def _reached(position: FeedPosition, other: FeedPosition) -> bool:
    """Whether a position is at or after another one, in every partition."""
    return all(
        a is not None and b is not None and a >= b for a, b in zip(position, other, strict=True)
    )


def _at(position: FeedPosition, change: ChangeEntry) -> EntryId:
    at = position[change.partition]
    assert at is not None, "a kept position is known in every partition"
    return at


class Feed:
    """The change streams that this process serves.

    Attributes:
        is_open: returns False once the process is shutting down.
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
        self, app_id: str, position: FeedPosition, connection: socket.socket | None = None
    ) -> Iterator[bytes]:
        """Server-sent events of all changes after a position, each once, as they happen.

        Args:
            connection: the client's socket, to notice at once when it disconnects.

        Raises:
            PositionLost: changes after the position are no longer available.
            TooManyFollowers
            StoreError: raised before the stream begins; a running stream resumes once the store
                is available again.
        """
        first = self._changes.read(app_id, position, limit=CHANGES_PER_READ)
        of_each = {app: reader.followers for app, reader in self._readers.items()}
        if of_each.get(app_id, 0) >= self._max_followers or sum(of_each.values()) >= MAX_FOLLOWERS:
            raise TooManyFollowers(self._max_followers, MAX_FOLLOWERS)
        return self._events(app_id, first, connection)

    def _events(
        self, app_id: str, first: ChangePage, connection: socket.socket | None
    ) -> Iterator[bytes]:
        ends = time.monotonic() + MAX_STREAM_SECONDS
        with self._reader(app_id) as reader, _hangup(connection) as hung_up:
            yield _beginning(first.before) + events(first.before, first.changes)
            position, said = first.after, time.monotonic()
            compared = None  # reader.beginnings when the position was last compared
            while self.is_open() and not hung_up.is_set() and time.monotonic() < ends:
                news, before, beginnings = reader.news, position, reader.beginnings
                try:
                    kept = reader.next_after(position) if compared == beginnings else None
                    data, position = kept or self._catch_up(app_id, position)
                    compared = beginnings
                except PositionLost:
                    yield _EXPIRED
                    break
                except StoreError:
                    data = b""
                if data:
                    yield data
                    said = time.monotonic()
                elif time.monotonic() - said >= self._heartbeat_seconds:
                    yield _HEARTBEAT
                    said = time.monotonic()
                elif position == before and not gevent.wait(
                    [news, hung_up], CHECK_SECONDS, count=1
                ):
                    # If the reader keeps polling but never reaches this follower's position, the
                    # store was set back: compare the position with the store again.
                    compared = compared if reader.is_at(position) else None
        if connection is not None and not self.is_open():
            # Otherwise the server would wait for the client's next request before it exits.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)

    def _catch_up(self, app_id: str, position: FeedPosition) -> tuple[bytes, FeedPosition]:
        page = self._changes.read(app_id, position, limit=CHANGES_PER_READ)
        return events(position, page.changes), page.after

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
    """An event that is set once the client has disconnected."""
    hung_up = Event()

    def watch() -> None:
        try:
            wait_read(connection.fileno())  # type: ignore[union-attr]
            # If the client sends data instead, only the heartbeat notices when it disconnects.
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
