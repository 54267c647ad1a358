"""Follow membership changes, at least once, as a consumer group of the change streams.

For each group and stream, the store keeps the entries that were delivered but not yet acknowledged
(pending). An entry is acknowledged once the handler has returned. If the process dies or the
handler fails, it is delivered again.

Other followers may claim a pending entry once it has been idle for 1.5 times ``handler_seconds``,
by the store's clock. Its owner changes the idle time to let it be claimed sooner, or after a
backoff if it has failed.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from secrets import token_hex
from typing import Any, Literal, NamedTuple

import redis
from redis import exceptions

from cohort_reader import scripts
from cohort_reader.changes import (
    FailedChange,
    Lag,
    MembershipChange,
    StreamEntry,
    decode_entries,
    decode_single_stream,
    to_change,
)
from cohort_reader.keys import UNAVAILABLE_ERRORS, Keys, checked_name, text

log = logging.getLogger("cohort_reader")

# How long to block for new entries, and so how often to look for claimable ones.
BLOCK_SECONDS = 1.0
# How often to check a partition that another follower is working on.
BUSY_SECONDS = 0.1
# Backoff while the store is unavailable.
MIN_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.1, 5.0
PENDING_PAGE_SIZE = 1000
MAX_FAILED_ENTRIES = 10_000
MAX_ERROR_CHARACTERS = 500


class _Stream(NamedTuple):
    """A change stream, and the group's keys for it."""

    partition: int
    name: str
    lease: str
    failed: str
    lost: str


class Follower:
    """Passes membership changes to a handler, as one consumer of a group. Use it from one thread.

    The followers of a group, in any number of processes, share its changes. Every change is handled
    at least once; more often after a crash, or if a handler takes longer than ``handler_seconds``.

    ``ordered=True``: the changes of a partition, and so those of each user, are handled one after
    the other, in order. Only one follower at a time works on a partition. A change that fails
    blocks its partition until it succeeds or is given up.

    ``ordered=False``: several followers work on a partition concurrently, and a change that fails
    blocks no other. A user's "left" may be handled before the "entered" that precedes it.

    Args:
        client: connects to the store; the follower never closes it.
        group: the group's name. Every group gets every change. Created if it doesn't exist.
        consumer: this follower's name, unique in the group; random by default. With a fixed name, a
            restarted follower resumes its pending changes at once. Otherwise they are claimed by
            others after 1.5 times ``handler_seconds``.
        app, prefix: as for :class:`CohortReader`.
        start: where a new group starts: at ``"new"`` changes, at ``"all"`` that the stream holds,
            or at a timezone-aware time. Changes since that time that the stream no longer holds are
            lost to the group.
        ordered: see above.
        handler_seconds: the longest time the handler may take for a change.
        retry_seconds: delay before a failed change is delivered again; doubles with each failure,
            up to ``handler_seconds``.
        max_deliveries: give up a change that fails after so many deliveries, and move it to the
            group's stream of failed changes. None: never.
        batch_size: how many changes to fetch at a time, at most.

    Raises:
        ValueError: an argument is invalid.
    """

    def __init__(
        self,
        client: redis.Redis,
        group: str,
        *,
        consumer: str | None = None,
        app: str = "default",
        prefix: str = "cohorts",
        start: Literal["new", "all"] | datetime = "new",
        ordered: bool = True,
        handler_seconds: float = 60.0,
        retry_seconds: float = 1.0,
        max_deliveries: int | None = 10,
        batch_size: int = 100,
    ) -> None:
        if handler_seconds < 0.01 or retry_seconds < 0 or batch_size < 1:
            raise ValueError("handler_seconds, retry_seconds or batch_size is too small")
        if max_deliveries is not None and max_deliveries < 1:
            raise ValueError("max_deliveries must be at least 1, or None")
        self._client = client
        self._group = checked_name(group)
        self._consumer = consumer or f"{socket.gethostname()}-{os.getpid()}-{token_hex(3)}"
        self._keys = Keys(client, app, prefix)
        self._start = _start_id(start)
        self._ordered = ordered
        self._handler_seconds = handler_seconds
        # Claims are renewed once half of handler_seconds has passed, so the handler has all of it.
        self._claim_after_ms = int(handler_seconds * 1500)
        self._retry_seconds = retry_seconds
        self._max_deliveries = max_deliveries
        self._batch_size = batch_size
        self._acquire_lease_script = client.register_script(scripts.ACQUIRE_LEASE)
        self._release_lease_script = client.register_script(scripts.RELEASE_LEASE)
        self._detect_loss_script = client.register_script(scripts.DETECT_LOSS)
        self._streams: deque[_Stream] = deque()
        self._own_pending_released = False
        self._idle_streams: list[_Stream] = []
        self._renewed_at = 0.0
        self._stopping = threading.Event()

    def run(self, handler: Callable[[MembershipChange], object]) -> None:
        """Pass changes to ``handler`` until :meth:`stop`. Waits while the store is unavailable.

        An exception of the handler is logged, and the change delivered again later. A
        ``BaseException`` such as KeyboardInterrupt ends the run.

        Raises:
            redis.RedisError: the store refuses the follower: permissions, password, type of a key.
        """
        backoff = MIN_BACKOFF_SECONDS
        while not self._stopping.is_set():
            try:
                if not self.poll(handler):
                    self._wait()
                backoff = MIN_BACKOFF_SECONDS
            except UNAVAILABLE_ERRORS as error:
                if isinstance(error, exceptions.AuthenticationError):
                    raise
                log.warning("store unavailable, retrying: %s", error)
                self._stopping.wait(backoff)
                backoff = min(2 * backoff, MAX_BACKOFF_SECONDS)

    def stop(self) -> None:
        """Make :meth:`run` return after the current change, within about a second.

        May be called from another thread, a signal handler or the handler.
        """
        self._stopping.set()

    def poll(self, handler: Callable[[MembershipChange], object]) -> int:
        """Pass the changes available now to ``handler``, and return how many were handled."""
        handled = 0
        self._idle_streams = []
        try:
            self.create_group()
            if not self._own_pending_released:
                self._release_own_pending()
            for stream in list(self._streams):
                if self._stopping.is_set():
                    break
                with self._lease(stream) as acquired:
                    if acquired:
                        handled += self._process_stream(stream, handler)
            self._streams.rotate(-1)
        except exceptions.ResponseError as error:
            if not _is_missing(error):
                raise
            self._reset_group()
        except BaseException:
            self._own_pending_released = False
            raise
        return handled

    def create_group(self) -> bool:
        """Create the group at ``start`` if it doesn't exist.

        Returns:
            False if nothing was received yet: the group is created later, and starts with the first
            change.
        """
        if self._streams:
            return True
        if self._keys.partition_count() is None:
            self._start = "0"
            return False
        streams = []
        for partition, key_prefix in enumerate(self._keys.partition_prefixes()):
            name = f"{key_prefix}changes"
            keys = (f"{name}:{self._group}:{suffix}" for suffix in ("lease", "failed", "lost"))
            streams.append(_Stream(partition, name, *keys))
            try:
                self._client.xgroup_create(name, self._group, self._first_id(name), mkstream=True)
            except exceptions.ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise
        self._streams.extend(streams)
        # Followers that start with different streams compete less for leases.
        self._streams.rotate(hash(self._consumer))
        return True

    def lag(self) -> list[Lag]:
        """How far the group is behind in each partition; for monitoring.

        Returns:
            An empty list if nothing was received yet, or if the store has just lost its data.
        """
        if not self.create_group():
            return []
        found = []
        for stream in sorted(self._streams):
            try:
                lost = self._detect_loss(stream) in (scripts.LOST_EARLIER, scripts.LOST_NOW)
                groups: Any = self._client.xinfo_groups(stream.name)
            except exceptions.ResponseError as error:
                if not _is_missing(error):
                    raise
                self._reset_group()
                return []
            group = next((g for g in groups if text(g["name"]) == self._group), None)
            if group is None:
                continue
            found.append(
                Lag(
                    partition=stream.partition,
                    undelivered=group["lag"],
                    pending=group["pending"],
                    lost=lost,
                )
            )
        return found

    def failed_changes(self, count: int = 100) -> list[FailedChange]:
        """The changes that were given up: the oldest ``count`` of each partition."""
        if not self.create_group():
            return []
        found = []
        for stream in sorted(self._streams):
            entries = decode_entries(self._client.xrange(stream.failed, count=count))
            for failed_id, fields in entries:
                entry = StreamEntry(fields["entry"], fields, int(fields["deliveries"]))
                change = to_change(stream.partition, entry)
                found.append(FailedChange(failed_id, change, fields["error"]))
        return found

    def remove_failed(self, failed: FailedChange) -> None:
        """Remove a change from the failed ones, once you have dealt with it."""
        stream = next(s for s in self._streams if s.partition == failed.change.partition)
        self._client.xdel(stream.failed, failed.id)

    def acknowledge_loss(self) -> None:
        """Clear ``lost`` in :meth:`lag`, until more is lost.

        Call it after followers have caught up: until they have, the same loss is detected again.
        Call it before you repair the loss, so that a loss during the repair is not missed.
        """
        if self.create_group():
            for stream in self._streams:
                self._client.delete(stream.lost)

    def _detect_loss(self, stream: _Stream) -> int:
        """Detect lost entries; must precede a read, which would hide a new loss."""
        return int(self._detect_loss_script(keys=[stream.name, stream.lost], args=[self._group]))

    def _first_id(self, stream_name: str) -> str:
        """The id that a new group starts after in a stream.

        A group that starts at ``"all"`` has not lost what was trimmed before its start.
        """
        if self._start != "all":
            return self._start
        try:
            last = text(self._client.xinfo_stream(stream_name)["last-generated-id"])
        except exceptions.ResponseError as error:
            if not _is_missing(error):
                raise
            return "0"
        # In this order: if the stream is empty now, nothing was added since `last` was read.
        for _, oldest in decode_entries(self._client.xrange(stream_name, count=1)):
            return oldest.get("previous", "0")
        return last

    def _reset_group(self) -> None:
        """Have the group created again: the store lost its data, so whatever it holds is new."""
        log.warning("group %s is gone, creating it again", self._group)
        self._streams.clear()
        self._keys.forget_partitions()
        self._start = "0"

    @contextmanager
    def _lease(self, stream: _Stream) -> Iterator[bool]:
        """Hold the lease on a stream during the block. Yields False if another follower has it."""
        if not self._ordered:
            yield True
            return
        acquired = self._acquire_lease(stream)
        try:
            yield acquired
        finally:
            if acquired:
                # If the store is unavailable, the lease expires.
                with suppress(exceptions.RedisError):
                    self._release_lease_script(keys=[stream.lease], args=[self._consumer])

    def _acquire_lease(self, stream: _Stream) -> bool:
        return bool(
            self._acquire_lease_script(
                keys=[stream.lease], args=[self._consumer, self._claim_after_ms]
            )
        )

    def _release_own_pending(self) -> None:
        """Release entries that were delivered to this follower but not handled.

        Called at the start and after an error or a lost reply, while no entry is being handled.
        """
        for stream in self._streams:
            start = "-"
            while True:
                page: Any = self._client.xpending_range(
                    stream.name, self._group, start, "+", PENDING_PAGE_SIZE, self._consumer
                )
                if not page:
                    break
                ids = [text(pending["message_id"]) for pending in page]
                self._release(stream, ids)
                start = f"({ids[-1]}"
        self._own_pending_released = True

    def _release(
        self,
        stream: _Stream,
        entry_ids: Sequence[str],
        *,
        after_seconds: float = 0.0,
        deliveries: int | None = None,
    ) -> None:
        """Let any follower claim this follower's entries after ``after_seconds``."""
        self._client.xclaim(
            stream.name,
            self._group,
            self._consumer,
            0,
            list(entry_ids),
            idle=max(0, self._claim_after_ms - int(after_seconds * 1000)),
            retrycount=deliveries,
            justid=True,
        )

    def _process_stream(
        self, stream: _Stream, handler: Callable[[MembershipChange], object]
    ) -> int:
        """Handle about a batch of a stream's changes. Returns how many were handled."""
        handled = 0
        self._renewed_at = time.monotonic()
        while handled < self._batch_size and not self._stopping.is_set():
            entries = self._next_entries(stream)
            done = self._process_entries(stream, entries, handler)
            handled += done
            if not entries or done < len(entries):
                break
        return handled

    def _next_entries(self, stream: _Stream) -> list[StreamEntry]:
        """Fetch the next entries of a stream to handle.

        Pending ones come first, and one at a time: if several were claimed, one that kills the
        process would use up the deliveries of the others.
        """
        while pending := self._first_pending(stream):
            if pending["time_since_delivered"] < self._claim_after_ms:
                return []  # in order, so later entries wait too
            entry_id = text(pending["message_id"])
            claimed = self._client.xclaim(
                stream.name, self._group, self._consumer, self._claim_after_ms, [entry_id]
            )
            for _, fields in decode_entries(claimed):
                return [StreamEntry(entry_id, fields, pending["times_delivered"] + 1)]
            # Another follower claimed it first, or it has left the stream and is now dropped.

        if self._detect_loss(stream) == scripts.LOST_NOW:
            log.error(
                "changes left %s before group %s read them: see Lag.lost", stream.name, self._group
            )
        with self._client.pipeline() as pipeline:
            pipeline.xreadgroup(self._group, self._consumer, {stream.name: ">"}, self._batch_size)
            pipeline.xpending_range(stream.name, self._group, "-", "+", 1)
            reply, head = pipeline.execute()
        entries = [StreamEntry(entry_id, f, 1) for entry_id, f in decode_single_stream(reply)]
        if not entries:
            self._idle_streams.append(stream)
        elif self._ordered and text(head[0]["message_id"]) != entries[0].id:
            # The client repeated the read after losing a reply, which held older entries.
            self._release_own_pending()
            return []
        return entries

    def _first_pending(self, stream: _Stream) -> Any:
        """The oldest pending entry; if unordered, the oldest claimable one."""
        min_idle = None if self._ordered else self._claim_after_ms
        found: Any = self._client.xpending_range(
            stream.name, self._group, "-", "+", 1, idle=min_idle
        )
        return found[0] if found else None

    def _process_entries(
        self,
        stream: _Stream,
        entries: Sequence[StreamEntry],
        handler: Callable[[MembershipChange], object],
    ) -> int:
        """Handle entries in order. Returns how many are done; releases those not started."""
        done = 0
        waiting = deque(entries)
        try:
            while waiting and not self._stopping.is_set():
                if not self._renew_claims(stream, waiting):
                    log.warning("another follower has taken over %s", stream.name)
                    waiting.clear()
                    break
                succeeded = self._process_entry(stream, waiting.popleft(), handler)
                done += succeeded
                if self._ordered and not succeeded:
                    break
        finally:
            if waiting:
                with suppress(exceptions.RedisError):
                    ids = [entry.id for entry in waiting]
                    # They were not tried, so this delivery doesn't count.
                    self._release(stream, ids, deliveries=waiting[0].deliveries - 1)
        return done

    def _renew_claims(self, stream: _Stream, waiting: Iterable[StreamEntry]) -> bool:
        """Ensure enough time to handle one more entry. False if the lease on the stream is lost."""
        now = time.monotonic()
        if now - self._renewed_at < self._handler_seconds / 2:
            return True
        self._renewed_at = now
        if self._ordered:
            return self._acquire_lease(stream)
        self._client.xclaim(
            stream.name, self._group, self._consumer, 0, [e.id for e in waiting], justid=True
        )
        return True

    def _process_entry(
        self,
        stream: _Stream,
        entry: StreamEntry,
        handler: Callable[[MembershipChange], object],
    ) -> bool:
        """Handle one entry. False if it failed and will be delivered again."""
        if self._max_deliveries and entry.deliveries > self._max_deliveries:
            self._give_up(stream, entry, "delivered too often without the handler returning")
            return True
        try:
            handler(to_change(stream.partition, entry))
        except Exception as error:
            log.exception("handling %s of %s failed", entry.id, stream.name)
            if self._max_deliveries and entry.deliveries >= self._max_deliveries:
                self._give_up(stream, entry, repr(error))
                return True
            delay = self._retry_seconds * 2 ** min(entry.deliveries - 1, 30)
            self._release(stream, [entry.id], after_seconds=delay)
            return False
        except BaseException:
            with suppress(exceptions.RedisError):
                self._release(stream, [entry.id])
            raise
        self._client.xack(stream.name, self._group, entry.id)
        return True

    def _give_up(self, stream: _Stream, entry: StreamEntry, error: str) -> None:
        log.error("giving up %s of %s: see Follower.failed_changes", entry.id, stream.name)
        fields: dict[Any, Any] = {
            **entry.fields,
            "entry": entry.id,
            "deliveries": str(entry.deliveries),
            "error": error[:MAX_ERROR_CHARACTERS],
        }
        with self._client.pipeline() as pipeline:
            pipeline.xadd(stream.failed, fields, maxlen=MAX_FAILED_ENTRIES)
            pipeline.xack(stream.name, self._group, entry.id)
            pipeline.execute()

    def _wait(self) -> None:
        """Wait for the next change, at most for a short time or until :meth:`stop`."""
        if not self._streams:
            self._stopping.wait(BLOCK_SECONDS)
            return
        if not self._idle_streams:
            self._stopping.wait(BUSY_SECONDS)
            return
        all_idle = len(self._idle_streams) == len(self._streams)
        seconds = BLOCK_SECONDS if all_idle else BUSY_SECONDS
        # The client would time out during a longer block.
        limit = self._client.get_connection_kwargs().get("socket_timeout")
        if limit is not None:
            seconds = min(seconds, limit / 2)
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                for stream in self._idle_streams:
                    pipeline.xinfo_groups(stream.name)
                replies = pipeline.execute()
        except exceptions.ResponseError as error:
            if not _is_missing(error):
                raise
            return  # the next poll creates the group again
        positions: dict[Any, Any] = {
            stream.name: text(group["last-delivered-id"])
            for stream, groups in zip(self._idle_streams, replies, strict=True)
            for group in groups
            if text(group["name"]) == self._group
        }
        if positions:
            self._client.xread(positions, count=1, block=max(1, int(seconds * 1000)))


def _start_id(start: Literal["new", "all"] | datetime) -> str:
    """The id to start after; "all" stays as it is, because its id differs between streams."""
    if isinstance(start, datetime):
        if start.tzinfo is None:
            raise ValueError("start must have a timezone")
        return f"{max(0, int(start.timestamp() * 1000) - 1)}-{2**64 - 1}"
    if start not in ("new", "all"):
        raise ValueError("start must be 'new', 'all' or a datetime")
    return "$" if start == "new" else "all"


def _is_missing(error: exceptions.ResponseError) -> bool:
    """Whether the error says that the stream or group doesn't exist."""
    return "NOGROUP" in str(error) or "no such key" in str(error)
