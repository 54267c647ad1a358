"""Follow membership changes, at least once, as a consumer group of the change streams.

For each group and stream, the store keeps the entries that were delivered but not yet acknowledged
(pending). An entry is acknowledged once the handler has returned. If the process dies or the
handler fails, it is delivered again.

Other followers may claim a pending entry once it has been idle for 1.5 times ``handler_seconds``,
by the store's clock. Its owner changes the idle time to let it be claimed sooner, or after a
backoff if it has failed.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from secrets import token_hex
from typing import Any, Literal, NamedTuple

import redis
import redis.asyncio
from redis import exceptions

from cohort_reader import scripts
from cohort_reader.changes import (
    FailedChange,
    Lag,
    MembershipChange,
    StreamEntry,
    decode_entries,
    decode_script_entries,
    to_change,
)
from cohort_reader.errors import UNAVAILABLE_ERRORS, describe
from cohort_reader.keys import Keys, check_client, checked_name, group_name, text
from cohort_reader.steps import Steps, run, run_async

log = logging.getLogger("cohort_reader")

# How long to block for new entries, and so how often to look for claimable ones.
BLOCK_SECONDS = 1.0
# How often to check a partition that another follower is working on; on a cluster, every partition.
BUSY_SECONDS = 0.1
# Backoff while the store is unavailable.
MIN_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.1, 5.0
# Consumers of dead processes are removed after this long, once their entries are handled.
IDLE_CONSUMER_SECONDS = 3600.0
MAX_FAILED_ENTRIES = 10_000
MAX_ERROR_CHARACTERS = 500

Handler = Callable[[MembershipChange], object]
AsyncHandler = Callable[[MembershipChange], Awaitable[object]]


class _Stream(NamedTuple):
    """A change stream, and the group's keys for it."""

    partition: int
    name: str
    lease: str
    failed: str
    lost: str


class _FollowerCore:
    """What :class:`Follower` and :class:`AsyncFollower` share: all of the logic, as steps."""

    _is_async = False

    def __init__(
        self,
        client: Any,
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
        check_client(client, type(self).__name__, is_async=self._is_async)
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
        # Claims are renewed at half of handler_seconds, so that each handler call gets that long.
        self._claim_after_ms = int(handler_seconds * 1500)
        self._retry_seconds = retry_seconds
        self._max_deliveries = max_deliveries
        self._batch_size = batch_size
        self._streams: deque[_Stream] = deque()
        self._group_was_lost = False
        self._idle_streams: list[_Stream] = []
        self._renewed_at = 0.0
        self._consumers_checked_at = float("-inf")
        self._stopping = self._new_event()

    # What differs between the two -----------------------------------------------------------------

    def _new_event(self) -> Any:
        raise NotImplementedError

    def _pause(self, seconds: float) -> Any:
        """Wait for a time, or until :meth:`stop`."""
        raise NotImplementedError

    # Steps ----------------------------------------------------------------------------------------

    def _run(self, handler: Callable[[MembershipChange], object]) -> Steps[None]:
        self._check_handler(handler)
        backoff = MIN_BACKOFF_SECONDS
        try:
            while not self._stopping.is_set():
                try:
                    if not (yield from self._poll(handler)):
                        yield from self._wait()
                    backoff = MIN_BACKOFF_SECONDS
                except UNAVAILABLE_ERRORS as error:
                    if isinstance(error, exceptions.AuthenticationError):
                        raise
                    log.warning("store unavailable, retrying: %s", error)
                    yield self._pause(backoff)
                    backoff = min(2 * backoff, MAX_BACKOFF_SECONDS)
        finally:
            with suppress(exceptions.RedisError, *UNAVAILABLE_ERRORS):
                yield from self._remove_consumers(self._consumer, IDLE_CONSUMER_SECONDS)

    def _poll(self, handler: Callable[[MembershipChange], object]) -> Steps[int]:
        self._check_handler(handler)
        handled = 0
        self._idle_streams = []
        try:
            yield from self._create_group()
            if time.monotonic() - self._consumers_checked_at > IDLE_CONSUMER_SECONDS:
                yield from self._remove_consumers("", IDLE_CONSUMER_SECONDS)
                self._consumers_checked_at = time.monotonic()
            for stream in list(self._streams):
                if self._stopping.is_set():
                    break
                handled += yield from self._process_stream(stream, handler)
            self._streams.rotate(-1)
        except exceptions.ReadOnlyError:
            # After a failover, open connections may lead to the old primary.
            if hasattr(self._client, "connection_pool"):
                yield self._client.connection_pool.disconnect(inuse_connections=False)
            raise
        except exceptions.ResponseError as error:
            if not _is_missing(error):
                raise
            self._reset_group()
        return handled

    def _check_handler(self, handler: Callable[[MembershipChange], object]) -> None:
        call = getattr(handler, "__call__", None)  # noqa: B004 - of an object with that method
        if not self._is_async and (
            inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call)
        ):
            raise TypeError("the handler is a coroutine function; use AsyncFollower")

    def _create_group(self) -> Steps[bool]:
        if self._streams:
            return True
        prefixes = yield from self._keys.partition_prefixes()
        if not prefixes:
            self._start = "0"
            return False
        streams = []
        for partition, key_prefix in enumerate(prefixes):
            name = f"{key_prefix}changes"
            keys = (f"{name}:{self._group}:{suffix}" for suffix in ("lease", "failed", "lost"))
            stream = _Stream(partition, name, *keys)
            streams.append(stream)
            first_id = yield from self._first_id(name)
            if self._group_was_lost:
                yield self._client.set(stream.lost, "0-0")
            try:
                yield self._client.xgroup_create(name, self._group, first_id, mkstream=True)
            except exceptions.ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise
        self._group_was_lost = False
        self._streams.extend(streams)
        # Followers that start with different streams compete less for leases.
        self._streams.rotate(hash(self._consumer))
        return True

    def _lag(self) -> Steps[list[Lag]]:
        if not (yield from self._create_group()):
            return []
        found = []
        for stream in sorted(self._streams):
            try:
                found_now, is_lost = yield from scripts.DETECT_LOSS(
                    self._client,
                    [stream.name, stream.lost],
                    self._group,
                    self._claim_after_ms,
                )
                self._log_loss(stream, found_now)
                groups = yield self._client.xinfo_groups(stream.name)
            except exceptions.ResponseError as error:
                if not _is_missing(error):
                    raise
                self._reset_group()
                return []
            group = next((g for g in groups if group_name(g) == self._group), None)
            if group is None:
                continue
            found.append(Lag(stream.partition, group["lag"], group["pending"], bool(is_lost)))
        return found

    def _failed_changes(self, count: int) -> Steps[list[FailedChange]]:
        if not (yield from self._create_group()):
            return []
        found = []
        for stream in sorted(self._streams):
            entries = yield self._client.xrange(stream.failed, count=count)
            for failed_id, fields in decode_entries(entries):
                entry = StreamEntry(fields["entry"], fields, int(fields["deliveries"]))
                change = to_change(stream.partition, entry)
                found.append(FailedChange(failed_id, change, fields["error"]))
        return found

    def _remove_failed(self, failed: FailedChange) -> Steps[None]:
        if (yield from self._create_group()):
            stream = next(s for s in self._streams if s.partition == failed.change.partition)
            yield self._client.xdel(stream.failed, failed.id)

    def _acknowledge_loss(self) -> Steps[None]:
        if (yield from self._create_group()):
            for stream in self._streams:
                yield self._client.delete(stream.lost)

    def _remove_idle_consumers(self, idle_seconds: float) -> Steps[None]:
        if (yield from self._create_group()):
            yield from self._remove_consumers("", idle_seconds)

    def _remove_consumers(self, name: str, idle_seconds: float) -> Steps[None]:
        for stream in self._streams:
            yield from scripts.REMOVE_CONSUMERS(
                self._client, [stream.name], self._group, name, int(idle_seconds * 1000)
            )

    def _log_loss(self, stream: _Stream, found_now: int) -> None:
        if found_now:
            log.error(
                "changes left %s before group %s handled them: see Lag.lost",
                stream.name,
                self._group,
            )

    def _first_id(self, stream_name: str) -> Steps[str]:
        """The id that a new group starts after in a stream.

        A group that starts at ``"all"`` has not lost what was trimmed before its start.
        """
        if self._start != "all":
            return self._start
        try:
            last = text((yield self._client.xinfo_stream(stream_name))["last-generated-id"])
        except exceptions.ResponseError as error:
            if not _is_missing(error):
                raise
            return "0"
        # In this order: if the stream is empty now, nothing was added since `last` was read.
        for _, oldest in decode_entries((yield self._client.xrange(stream_name, count=1))):
            return oldest.get("previous", "0")
        return last

    def _reset_group(self) -> None:
        """Have the group created again: the store lost its data, so whatever it holds is new."""
        log.error("group %s is gone, creating it again: see Lag.lost", self._group)
        self._streams.clear()
        self._keys.forget_partitions()
        self._start = "0"
        self._group_was_lost = True

    def _release(
        self,
        stream: _Stream,
        entry_ids: Sequence[str],
        *,
        after_seconds: float = 0.0,
        deliveries: int | None = None,
    ) -> Steps[list[str]]:
        """Let any follower claim this follower's entries after ``after_seconds``.

        Returns:
            The given entries that have left the stream. If ``deliveries`` is None, they stay
            pending, for the caller to give up. Otherwise they are dropped (which may count as a
            loss), and the list is empty.
        """
        found_now, kept = yield from scripts.RELEASE(
            self._client,
            [stream.name, stream.lost],
            self._group,
            self._consumer,
            max(0, self._claim_after_ms - int(after_seconds * 1000)),
            "" if deliveries is None else deliveries,
            *entry_ids,
        )
        self._log_loss(stream, found_now)
        return [text(entry_id) for entry_id in kept]

    def _process_stream(
        self, stream: _Stream, handler: Callable[[MembershipChange], object]
    ) -> Steps[int]:
        """Handle about a batch of a stream's changes. Returns how many were handled."""
        handled = 0
        state = ""
        try:
            while handled < self._batch_size and not self._stopping.is_set():
                self._renewed_at = time.monotonic()
                state, entries = yield from self._take(stream)
                if state == "more":
                    continue
                done = yield from self._process_entries(stream, entries, handler)
                handled += done
                if not entries or done < len(entries):
                    break
        finally:
            if self._ordered and state != "busy":
                # If the store is unavailable, the lease expires.
                with suppress(exceptions.RedisError, *UNAVAILABLE_ERRORS):
                    yield from scripts.RELEASE_LEASE(self._client, [stream.lease], self._consumer)
        if state == "new" and not handled:
            self._idle_streams.append(stream)
        return handled

    def _take(self, stream: _Stream) -> Steps[tuple[str, list[StreamEntry]]]:
        """Take the next entries of a stream to handle. Returns a state, see scripts.TAKE."""
        state, found_now, *taken = yield from scripts.TAKE(
            self._client,
            [stream.name, stream.lost, stream.lease],
            self._group,
            self._consumer,
            self._claim_after_ms,
            self._batch_size,
            "ordered" if self._ordered else "unordered",
        )
        self._log_loss(stream, found_now)
        if not taken:
            return text(state), []
        entries, deliveries = taken
        return text(state), [
            StreamEntry(entry_id, fields, deliveries)
            for entry_id, fields in decode_script_entries(entries)
        ]

    def _process_entries(
        self,
        stream: _Stream,
        entries: Sequence[StreamEntry],
        handler: Callable[[MembershipChange], object],
    ) -> Steps[int]:
        """Handle entries in order. Returns how many are done; releases those not started."""
        done = 0
        waiting = deque(entries)
        try:
            while waiting and not self._stopping.is_set():
                if not (yield from self._renew_claims(stream, waiting)):
                    log.warning("another follower has taken over %s", stream.name)
                    waiting.clear()
                    break
                succeeded = yield from self._process_entry(stream, waiting.popleft(), handler)
                done += succeeded
                if self._ordered and not succeeded:
                    break
        finally:
            if waiting:
                with suppress(exceptions.RedisError, *UNAVAILABLE_ERRORS):
                    ids = [entry.id for entry in waiting]
                    # They were not tried, so this delivery doesn't count.
                    deliveries = waiting[0].deliveries - 1
                    yield from self._release(stream, ids, deliveries=deliveries)
        return done

    def _renew_claims(self, stream: _Stream, waiting: Iterable[StreamEntry]) -> Steps[bool]:
        """Renew claims if needed to handle one more entry. False if the stream's lease is lost."""
        now = time.monotonic()
        if now - self._renewed_at < self._handler_seconds / 2:
            return True
        self._renewed_at = now
        if self._ordered:
            acquired = yield from scripts.ACQUIRE_LEASE(
                self._client, [stream.lease], self._consumer, self._claim_after_ms
            )
            return bool(acquired)
        ids = [entry.id for entry in waiting]
        yield from scripts.RENEW(self._client, [stream.name], self._group, self._consumer, *ids)
        return True

    def _process_entry(
        self,
        stream: _Stream,
        entry: StreamEntry,
        handler: Callable[[MembershipChange], object],
    ) -> Steps[bool]:
        """Handle one entry. False if it failed and will be delivered again."""
        if self._max_deliveries and entry.deliveries > self._max_deliveries:
            reason = "delivered too often without the handler returning"
            yield from self._give_up(stream, entry, reason)
            return True
        try:
            result = handler(to_change(stream.partition, entry))
            if is_awaitable := inspect.isawaitable(result):
                if self._is_async:
                    yield result
                elif inspect.iscoroutine(result):
                    result.close()
        except Exception as error:
            log.exception("handling %s of %s failed", entry.id, stream.name)
            if self._max_deliveries and entry.deliveries >= self._max_deliveries:
                yield from self._give_up(stream, entry, describe(error))
                return True
            delay = self._retry_seconds * 2 ** min(entry.deliveries - 1, 30)
            gone = yield from self._release(stream, [entry.id], after_seconds=delay)
            if gone:  # it could not be delivered again
                yield from self._give_up(stream, entry, describe(error))
            return bool(gone)
        except BaseException:
            with suppress(exceptions.RedisError, *UNAVAILABLE_ERRORS):
                if (yield from self._release(stream, [entry.id])):
                    yield from self._give_up(stream, entry, "the follower was interrupted")
            raise
        if is_awaitable and not self._is_async:
            yield from self._release(stream, [entry.id], deliveries=entry.deliveries - 1)
            raise TypeError("the handler returned an awaitable; use AsyncFollower")
        yield self._client.xack(stream.name, self._group, entry.id)
        return True

    def _give_up(self, stream: _Stream, entry: StreamEntry, error: str) -> Steps[None]:
        log.error("giving up %s of %s: see failed_changes()", entry.id, stream.name)
        fields = {
            **entry.fields,
            "entry": entry.id,
            "deliveries": str(entry.deliveries),
            "error": error[:MAX_ERROR_CHARACTERS],
        }
        yield from scripts.GIVE_UP(
            self._client,
            [stream.name, stream.failed],
            self._group,
            entry.id,
            MAX_FAILED_ENTRIES,
            *(part for field in fields.items() for part in field),
        )

    def _wait(self) -> Steps[None]:
        """Wait for the next change, at most for a short time or until :meth:`stop`."""
        if not self._streams:
            yield self._pause(BLOCK_SECONDS)
            return
        # One command can't wait for streams in different slots.
        is_cluster = isinstance(self._client, (redis.RedisCluster, redis.asyncio.RedisCluster))
        if not self._idle_streams or is_cluster:
            yield self._pause(BUSY_SECONDS)
            return
        all_idle = len(self._idle_streams) == len(self._streams)
        seconds = BLOCK_SECONDS if all_idle else BUSY_SECONDS
        # The client would time out during a longer block.
        limit = self._client.get_connection_kwargs().get("socket_timeout")
        if limit is not None:
            seconds = min(seconds, limit / 2)
        positions: dict[str, str] = {}
        try:
            for stream in self._idle_streams:
                for group in (yield self._client.xinfo_groups(stream.name)):
                    if group_name(group) == self._group:
                        positions[stream.name] = text(group["last-delivered-id"])
        except exceptions.ResponseError as error:
            if not _is_missing(error):
                raise
            return  # the next poll creates the group again
        if positions:
            try:
                yield self._client.xread(positions, count=1, block=max(1, int(seconds * 1000)))
            except exceptions.ResponseError as error:
                # The server became a replica; the next poll leaves it.
                if not str(error).startswith("UNBLOCKED"):
                    raise


class Follower(_FollowerCore):
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
            restarted follower resumes its pending changes immediately. Otherwise others claim them
            after 1.5 times ``handler_seconds``.
        app, prefix: as for :class:`CohortReader`.
        start: where a new group begins: with changes from now on (``"new"``), with all that the
            stream holds (``"all"``), or at a timezone-aware time. Changes since that time that the
            stream no longer holds are lost to the group.
        ordered: see above.
        handler_seconds: the longest time the handler may take for a change.
        retry_seconds: delay before a failed change is delivered again; doubles with each failure,
            up to 1.5 times ``handler_seconds``.
        max_deliveries: give up a change that fails after this many deliveries, and move it to the
            group's stream of failed changes. None: never, unless it leaves the stream.
        batch_size: how many changes to fetch at a time, at most.

    Raises:
        TypeError: ``client`` is one of ``redis.asyncio``, or no client.
        ValueError: an argument is invalid.
    """

    def _new_event(self) -> threading.Event:
        return threading.Event()

    def _pause(self, seconds: float) -> Any:
        return self._stopping.wait(seconds)

    def run(self, handler: Handler) -> None:
        """Pass changes to ``handler`` until :meth:`stop`. Waits while the store is unavailable.

        An exception of the handler is logged, and the change delivered again later. A
        ``BaseException`` such as KeyboardInterrupt ends the run.

        Raises:
            TypeError: the handler is a coroutine function, or returned an awaitable. The change is
                not acknowledged.
            redis.RedisError: the store refuses the follower: permissions, password, type of a key.
        """
        run(self._run(handler))

    def stop(self) -> None:
        """Make :meth:`run` return after the current change, within about a second.

        May be called from another thread, a signal handler or the handler.
        """
        self._stopping.set()

    def poll(self, handler: Handler) -> int:
        """Pass changes that are available now to ``handler``; returns how many were handled.

        It handles about ``batch_size`` changes of each partition at most. Exceptions of the handler
        are treated as in :meth:`run`.

        Raises:
            TypeError: as :meth:`run`.
            redis.RedisError: the store is unavailable, or refuses the follower. If no node of a
                cluster answers: ``RedisClusterException``, which is not a RedisError.
        """
        return run(self._poll(handler))

    def create_group(self) -> bool:
        """Create the group at ``start`` if it doesn't exist.

        Returns:
            False if nothing was received yet: the group is created later, and starts with the first
            change.
        """
        return run(self._create_group())

    def lag(self) -> list[Lag]:
        """How far the group is behind in each partition; for monitoring.

        Returns:
            An empty list if nothing was received yet, or if the store has just lost its data.
        """
        return run(self._lag())

    def failed_changes(self, count: int = 100) -> list[FailedChange]:
        """The changes that were given up: the oldest ``count`` of each partition."""
        return run(self._failed_changes(count))

    def remove_failed(self, failed: FailedChange) -> None:
        """Remove a change from the failed ones, once you have dealt with it."""
        run(self._remove_failed(failed))

    def acknowledge_loss(self) -> None:
        """Clear ``lost`` in :meth:`lag`, until more is lost.

        Call it before you repair the loss, so that a loss during the repair is not missed.
        """
        run(self._acknowledge_loss())

    def remove_idle_consumers(self, idle_seconds: float = IDLE_CONSUMER_SECONDS) -> None:
        """Remove consumers of the group that did nothing for this long and have nothing pending.

        Followers do this themselves, every hour.
        """
        run(self._remove_idle_consumers(idle_seconds))


class AsyncFollower(_FollowerCore):
    """:class:`Follower` for asyncio. The handler returns an awaitable, or is a plain function.

    Args: as for :class:`Follower`; ``client`` is one of ``redis.asyncio``.

    If the task that runs :meth:`run` is cancelled, the change in hand is delivered again.
    """

    _is_async = True

    def _new_event(self) -> asyncio.Event:
        return asyncio.Event()

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def run(self, handler: AsyncHandler | Handler) -> None:
        """As :meth:`Follower.run`."""
        await run_async(self._run(handler))

    def stop(self) -> None:
        """As :meth:`Follower.stop`; call it on the event loop, such as in a signal handler."""
        self._stopping.set()

    async def poll(self, handler: AsyncHandler | Handler) -> int:
        """As :meth:`Follower.poll`."""
        return await run_async(self._poll(handler))

    async def create_group(self) -> bool:
        """As :meth:`Follower.create_group`."""
        return await run_async(self._create_group())

    async def lag(self) -> list[Lag]:
        """As :meth:`Follower.lag`."""
        return await run_async(self._lag())

    async def failed_changes(self, count: int = 100) -> list[FailedChange]:
        """As :meth:`Follower.failed_changes`."""
        return await run_async(self._failed_changes(count))

    async def remove_failed(self, failed: FailedChange) -> None:
        """As :meth:`Follower.remove_failed`."""
        await run_async(self._remove_failed(failed))

    async def acknowledge_loss(self) -> None:
        """As :meth:`Follower.acknowledge_loss`."""
        await run_async(self._acknowledge_loss())

    async def remove_idle_consumers(self, idle_seconds: float = IDLE_CONSUMER_SECONDS) -> None:
        """As :meth:`Follower.remove_idle_consumers`."""
        await run_async(self._remove_idle_consumers(idle_seconds))


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
