"""Follow who enters and leaves, at least once, in a consumer group of the change streams.

The store keeps, for each group and stream, what was delivered to whom and not yet acknowledged
(pending). An entry is acknowledged after the handler has returned. One that isn't, because the
process died or the handler failed, is delivered again.

Whether a pending entry may be taken is told by its idle time, which the store measures: from one
and a half times ``handler_seconds`` on it may. A failed entry, or one that was fetched and not
begun, gets its idle time set so that it may be taken at the right moment, by whoever comes first.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from secrets import token_hex
from typing import Any, Literal, NamedTuple

import redis
from redis import exceptions

from cohort_reader.keys import UNAVAILABLE, Keys, checked_name, text

log = logging.getLogger("cohort_reader")

# What waits for new entries blocks so long at most, and so looks that often for abandoned ones.
BLOCK_SECONDS = 1.0
# How often a partition is looked at that another follower is working on.
BUSY_SECONDS = 0.1
# Waits after the store could not be had grow from the first to the second.
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 0.1, 5.0
FAILED_ENTRIES_KEPT = 10_000
MAX_ERROR_CHARACTERS = 500

# Take the lease on a stream, or go on with it. A repeat of a call whose reply was lost is harmless.
_TAKE_LEASE = """
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_LEAVE_LEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
"""

# Note it where entries left the stream before the group read them. The first entry that the group
# has not read follows on the last that it has; if not, those between are gone. Trimming takes the
# oldest ones: where something is held from before them, they were erased. It works where memory is
# full too, as reading does.
_NOTE_LOSS = """#!lua flags=allow-oom
local call = redis.call
local read
for _, group in ipairs(call('XINFO', 'GROUPS', KEYS[1])) do
  local about = {}
  for i = 1, #group, 2 do about[group[i]] = group[i + 1] end
  if about['name'] == ARGV[1] then read = about['last-delivered-id'] end
end

local function after(a, b)
  local ms_a, n_a = string.match(a, '(%d+)-(%d+)')
  local ms_b, n_b = string.match(b, '(%d+)-(%d+)')
  if ms_a ~= ms_b then return tonumber(ms_a) > tonumber(ms_b) end
  return tonumber(n_a) > tonumber(n_b)
end

local entry = read and call('XRANGE', KEYS[1], '(' .. read, '+', 'COUNT', 1)[1]
local previous = '0-0'
for i = 1, entry and #entry[2] or 0, 2 do
  if entry[2][i] == 'previous' then previous = entry[2][i + 1] end
end
if entry and after(previous, read)
    and call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1][1] == entry[1] then
  call('SET', KEYS[2], previous)
  return 2
end
return call('EXISTS', KEYS[2])
"""
# What it returns.
_LOST_EARLIER, _LOST_NOW = 1, 2


@dataclass(frozen=True, slots=True)
class Change:
    """Some users entered or left a cohort, in one request to the receiver.

    Attributes:
        id: of the entry, unique within its partition.
        version: grows with every change of the same user, and compares as text. A store of your
            own that keeps it can tell a repeat or an older change from a newer one.
        partition: number of the partition.
        cohort_id: the cohort.
        entered: they entered; False if they left.
        at_ms: when, in ms since the epoch.
        user_ids: who, at most about a thousand.
        deliveries: how often it was delivered, this time included. More than 1: it may have been
            handled before.
    """

    id: str
    version: str
    partition: int
    cohort_id: str
    entered: bool
    at_ms: int
    user_ids: tuple[str, ...]
    deliveries: int = 1


@dataclass(frozen=True, slots=True)
class FailedChange:
    """A change that was given up. ``id`` is its own, for :meth:`Follower.forget_failed`."""

    id: str
    change: Change
    error: str


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a group is behind in one partition.

    Attributes:
        waiting: entries that were not delivered yet; None where the store can't tell.
        pending: entries that were delivered and not yet acknowledged.
        lost: some entries left the stream before they were delivered: the group was behind for
            longer than the stream is kept. Told until :meth:`Follower.forget_lost`. Where all
            that is held of the stream is not delivered yet, and entries before that were erased
            with their users, it is told as well: the two look the same.
    """

    partition: int
    waiting: int | None
    pending: int
    lost: bool


class _Stream(NamedTuple):
    partition: int
    name: str
    lease: str
    failed: str
    lost: str


class _Entry(NamedTuple):
    id: str
    fields: Mapping[str, str]
    deliveries: int


class Follower:
    """One consumer of a group. Hands each change to a handler; use it from one thread.

    Several followers of one group, in any number of processes, share the changes. Every change is
    handled at least once; after a crash, or when a handler takes longer than ``handler_seconds``,
    more than once.

    ``ordered=True``: the changes of a partition, and so those of every user, are handled one after
    the other, in order. One follower at a time works on a partition, so at most as many work at the
    same time as there are partitions. A change that fails holds up its partition until it succeeds
    or is given up.

    ``ordered=False``: followers work on one partition at the same time, and a change that fails
    holds up no other. A user's "left" can be handled before the "entered" that it follows.

    Args:
        client: connects to the store; the follower never closes it.
        group: name of the group; each group gets every change. Made where it does not exist.
        consumer: name of this follower, different from all others in the group. By default a new
            one. Under a lasting name, a follower that crashed and is started again goes on at once;
            others take over what a crashed one left after 1.5 times ``handler_seconds``.
        app, prefix: as for :class:`CohortReader`.
        start: where a new group begins: with ``"new"`` changes, with ``"all"`` that the stream
            still holds, or with those since a time (timezone-aware). Those since the time that
            the stream no longer holds are lost to the group.
        ordered: see above.
        handler_seconds: longest time that the handler may take for one change.
        retry_seconds: wait before a failed change is delivered again; doubled with each failure, up
            to ``handler_seconds``.
        max_deliveries: after so many deliveries a change that fails is given up: it is put into the
            group's stream of failed changes. None never gives up.
        batch: most changes to fetch at a time.

    Raises:
        ValueError: an argument makes no sense.
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
        batch: int = 100,
    ) -> None:
        if handler_seconds < 0.01 or retry_seconds < 0 or batch < 1:
            raise ValueError("handler_seconds, retry_seconds or batch is too small")
        if max_deliveries is not None and max_deliveries < 1:
            raise ValueError("max_deliveries must be at least 1, or None")
        self._client = client
        self._group = checked_name(group)
        self._consumer = consumer or f"{socket.gethostname()}-{os.getpid()}-{token_hex(3)}"
        self._keys = Keys(client, app, prefix)
        self._start = _start_id(start)
        self._ordered = ordered
        self._handler_seconds = handler_seconds
        # Looked at again after half of handler_seconds: that leaves the whole of it.
        self._taken_ms = int(handler_seconds * 1500)
        self._retry_seconds = retry_seconds
        self._max_deliveries = max_deliveries
        self._batch = batch
        self._take_lease = client.register_script(_TAKE_LEASE)
        self._leave_lease = client.register_script(_LEAVE_LEASE)
        self._note_loss = client.register_script(_NOTE_LOSS)
        self._streams: deque[_Stream] = deque()
        self._recovered = False
        self._quiet: list[_Stream] = []
        self._kept_at = 0.0
        self._stopping = threading.Event()

    def run(self, handler: Callable[[Change], object]) -> None:
        """Hand changes to ``handler`` until :meth:`stop`. Waits for a store that can't be had.

        Whatever the handler raises is logged, and the change is delivered again later. What is
        no ``Exception`` (KeyboardInterrupt) ends the run.

        Raises:
            redis.RedisError: the store refuses the follower: rights, password, a key's type.
        """
        pause = FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            try:
                if not self.poll(handler):
                    self._wait()
                pause = FIRST_PAUSE_SECONDS
            except UNAVAILABLE as error:
                if isinstance(error, exceptions.AuthenticationError):
                    raise
                log.warning("the store can't be had, trying again: %s", error)
                self._stopping.wait(pause)
                pause = min(2 * pause, LAST_PAUSE_SECONDS)

    def stop(self) -> None:
        """Let :meth:`run` return after the change in hand, within about a second.

        May be called from another thread, a signal handler or the handler.
        """
        self._stopping.set()

    def poll(self, handler: Callable[[Change], object]) -> int:
        """Hand over what there is now, and return how many changes were handled."""
        handled = 0
        self._quiet = []
        try:
            self.create_group()
            if not self._recovered:
                self._take_up()
            for stream in list(self._streams):
                if self._stopping.is_set():
                    break
                with self._lease(stream) as mine:
                    if mine:
                        handled += self._work(stream, handler)
            self._streams.rotate(-1)
        except exceptions.ResponseError as error:
            if not _is_gone(error):
                raise
            self._begin_anew()
        except BaseException:
            self._recovered = False
            raise
        return handled

    def create_group(self) -> bool:
        """Make the group where it does not exist; it begins at ``start``. May be repeated.

        Returns:
            False if nothing was ever received: then the group is made later, and begins with the
            first change that comes.
        """
        if self._streams:
            return True
        if self._keys.partitions() is None:
            self._start = "0"
            return False
        streams = []
        for partition, base in enumerate(self._keys.bases()):
            name = f"{base}changes"
            prefix = f"{name}:{self._group}"
            keys = (f"{prefix}:{part}" for part in ("lease", "failed", "lost"))
            streams.append(_Stream(partition, name, *keys))
            try:
                self._client.xgroup_create(name, self._group, self._first_id(name), mkstream=True)
            except exceptions.ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise
        self._streams.extend(streams)
        # Followers that begin elsewhere meet less often.
        self._streams.rotate(hash(self._consumer))
        return True

    def lag(self) -> list[Lag]:
        """How far the group is behind, for each partition; for a monitor.

        Returns:
            An empty list if nothing was ever received, or where the store has just lost its data.
        """
        if not self.create_group():
            return []
        found = []
        for stream in sorted(self._streams):
            try:
                lost = self._loss(stream) in (_LOST_EARLIER, _LOST_NOW)
                groups: Any = self._client.xinfo_groups(stream.name)
            except exceptions.ResponseError as error:
                if not _is_gone(error):
                    raise
                self._begin_anew()
                return []
            group = next((g for g in groups if text(g["name"]) == self._group), None)
            if group is None:
                continue
            found.append(
                Lag(
                    partition=stream.partition,
                    waiting=group["lag"],
                    pending=group["pending"],
                    lost=lost,
                )
            )
        return found

    def failed(self, count: int = 100) -> list[FailedChange]:
        """The changes that were given up, oldest first, at most ``count`` of each partition."""
        if not self.create_group():
            return []
        found = []
        for stream in sorted(self._streams):
            for entry_id, raw in _entries(self._client.xrange(stream.failed, count=count)):
                entry = _Entry(raw["entry"], raw, int(raw["deliveries"]))
                found.append(FailedChange(entry_id, _change(stream.partition, entry), raw["error"]))
        return found

    def forget_failed(self, failed: FailedChange) -> None:
        """Remove a change from those that were given up: it is dealt with."""
        stream = next(s for s in self._streams if s.partition == failed.change.partition)
        self._client.xdel(stream.failed, failed.id)

    def forget_lost(self) -> None:
        """Let :meth:`lag` no longer say ``lost``, until more is lost.

        Call it before you make up for the loss, so that one that comes meanwhile is told, and
        after followers have read on: before they have, it is told again.
        """
        if self.create_group():
            for stream in self._streams:
                self._client.delete(stream.lost)

    def _loss(self, stream: _Stream) -> int:
        """Whether the group lost entries, earlier or now. Whoever reads on no longer sees it."""
        return int(self._note_loss(keys=[stream.name, stream.lost], args=[self._group]))

    def _first_id(self, stream_name: str) -> str:
        """The id that a new group has read to in a stream.

        What left the stream before a group that begins with all it holds is not lost to the group.
        """
        if self._start != "all":
            return self._start
        try:
            last = text(self._client.xinfo_stream(stream_name)["last-generated-id"])
        except exceptions.ResponseError as error:
            if not _is_gone(error):
                raise
            return "0"
        # Asked for second: where it finds nothing, nothing came since.
        for _, oldest in _entries(self._client.xrange(stream_name, count=1)):
            return oldest.get("previous", "0")
        return last

    def _begin_anew(self) -> None:
        """Make the group again at the next use. The store lost its data: all there then is new."""
        log.warning("the group %s is gone, it is made again", self._group)
        self._streams.clear()
        self._keys.forget_partitions()
        self._start = "0"

    @contextmanager
    def _lease(self, stream: _Stream) -> Iterator[bool]:
        """Whether this follower may work on a stream now, and until the block's end."""
        if not self._ordered:
            yield True
            return
        mine = self._keep_lease(stream)
        try:
            yield mine
        finally:
            if mine:
                # Where the store is away the lease ends by itself.
                with suppress(exceptions.RedisError):
                    self._leave_lease(keys=[stream.lease], args=[self._consumer])

    def _keep_lease(self, stream: _Stream) -> bool:
        return bool(self._take_lease(keys=[stream.lease], args=[self._consumer, self._taken_ms]))

    def _take_up(self) -> None:
        """Free what was delivered to this follower and not handled: a reply was lost, or a crash.

        Only at the beginning and after an error, when it has nothing in hand.
        """
        for stream in self._streams:
            start = "-"
            while True:
                page: Any = self._client.xpending_range(
                    stream.name, self._group, start, "+", 1000, self._consumer
                )
                if not page:
                    break
                ids = [text(pending["message_id"]) for pending in page]
                self._free(stream, ids)
                start = f"({ids[-1]}"
        self._recovered = True

    def _free(
        self,
        stream: _Stream,
        entry_ids: Sequence[str],
        *,
        after_seconds: float = 0.0,
        deliveries: int | None = None,
    ) -> None:
        """Let entries that this follower holds be taken, by whoever comes first."""
        self._client.xclaim(
            stream.name,
            self._group,
            self._consumer,
            0,
            list(entry_ids),
            idle=max(0, self._taken_ms - int(after_seconds * 1000)),
            retrycount=deliveries,
            justid=True,
        )

    def _work(self, stream: _Stream, handler: Callable[[Change], object]) -> int:
        """Handle the changes of one stream, about a batch. Returns how many were handled."""
        handled = 0
        self._kept_at = time.monotonic()
        while handled < self._batch and not self._stopping.is_set():
            entries = self._take(stream)
            done = self._handle(stream, entries, handler)
            handled += done
            if not entries or done < len(entries):
                break
        return handled

    def _take(self, stream: _Stream) -> list[_Entry]:
        """The next entries of a stream to handle.

        Pending ones come first, one at a time: were they taken together, one that kills the
        process would use up the deliveries of the others.
        """
        while pending := self._first_pending(stream):
            if pending["time_since_delivered"] < self._taken_ms:
                return []  # so those behind it wait as well
            entry_id = text(pending["message_id"])
            claimed = self._client.xclaim(
                stream.name, self._group, self._consumer, self._taken_ms, [entry_id]
            )
            for _, fields in _entries(claimed):
                return [_Entry(entry_id, fields, pending["times_delivered"] + 1)]
            # Another was faster; or it is no longer in the stream, and the store forgets it now.

        if self._loss(stream) == _LOST_NOW:
            log.error(
                "changes left %s before the group %s read them: see Lag.lost",
                stream.name,
                self._group,
            )
        with self._client.pipeline() as pipeline:
            pipeline.xreadgroup(self._group, self._consumer, {stream.name: ">"}, self._batch)
            pipeline.xpending_range(stream.name, self._group, "-", "+", 1)
            reply, head = pipeline.execute()
        entries = [_Entry(entry_id, fields, 1) for entry_id, fields in _read(reply)]
        if not entries:
            self._quiet.append(stream)
        elif self._ordered and text(head[0]["message_id"]) != entries[0].id:
            # The client repeats a call whose reply was lost. That reply had the older entries.
            self._take_up()
            return []
        return entries

    def _first_pending(self, stream: _Stream) -> Any:
        """The oldest pending entry, or where order does not matter, the oldest that is free."""
        found: Any = self._client.xpending_range(
            stream.name, self._group, "-", "+", 1, idle=None if self._ordered else self._taken_ms
        )
        return found[0] if found else None

    def _handle(
        self, stream: _Stream, entries: Sequence[_Entry], handler: Callable[[Change], object]
    ) -> int:
        """Handle entries, in order. Returns how many are done with; frees what was not begun."""
        done = 0
        waiting = deque(entries)
        try:
            while waiting and not self._stopping.is_set():
                if not self._keep(stream, waiting):
                    log.warning("another follower has taken over %s", stream.name)
                    waiting.clear()
                    break
                settled = self._settle(stream, waiting.popleft(), handler)
                done += settled
                if self._ordered and not settled:
                    break
        finally:
            if waiting:
                with suppress(exceptions.RedisError):
                    ids = [entry.id for entry in waiting]
                    # This delivery doesn't count.
                    self._free(stream, ids, deliveries=waiting[0].deliveries - 1)
        return done

    def _keep(self, stream: _Stream, waiting: Iterable[_Entry]) -> bool:
        """Make sure that there is time to handle one more entry. False if the stream is lost."""
        now = time.monotonic()
        if now - self._kept_at < self._handler_seconds / 2:
            return True
        self._kept_at = now
        if self._ordered:
            return self._keep_lease(stream)
        self._client.xclaim(
            stream.name, self._group, self._consumer, 0, [e.id for e in waiting], justid=True
        )
        return True

    def _settle(self, stream: _Stream, entry: _Entry, handler: Callable[[Change], object]) -> bool:
        """Handle one entry. False if it failed and is to be delivered again."""
        if self._max_deliveries and entry.deliveries > self._max_deliveries:
            self._give_up(stream, entry, "it was delivered too often, and never handled to its end")
            return True
        try:
            handler(_change(stream.partition, entry))
        except Exception as error:
            log.exception("handling %s of %s failed", entry.id, stream.name)
            if self._max_deliveries and entry.deliveries >= self._max_deliveries:
                self._give_up(stream, entry, repr(error))
                return True
            wait = self._retry_seconds * 2 ** min(entry.deliveries - 1, 30)
            self._free(stream, [entry.id], after_seconds=wait)
            return False
        except BaseException:
            with suppress(exceptions.RedisError):
                self._free(stream, [entry.id])
            raise
        self._client.xack(stream.name, self._group, entry.id)
        return True

    def _give_up(self, stream: _Stream, entry: _Entry, error: str) -> None:
        log.error("%s of %s is given up: see Follower.failed", entry.id, stream.name)
        fields: dict[Any, Any] = {
            **entry.fields,
            "entry": entry.id,
            "deliveries": str(entry.deliveries),
            "error": error[:MAX_ERROR_CHARACTERS],
        }
        with self._client.pipeline() as pipeline:
            pipeline.xadd(stream.failed, fields, maxlen=FAILED_ENTRIES_KEPT)
            pipeline.xack(stream.name, self._group, entry.id)
            pipeline.execute()

    def _wait(self) -> None:
        """Wait for the next change, until :meth:`stop`, or a short time."""
        if not self._streams:
            self._stopping.wait(BLOCK_SECONDS)
            return
        if not self._quiet:
            self._stopping.wait(BUSY_SECONDS)
            return
        seconds = BLOCK_SECONDS if len(self._quiet) == len(self._streams) else BUSY_SECONDS
        # The client takes a longer silence for a broken connection.
        limit = self._client.get_connection_kwargs().get("socket_timeout")
        if limit is not None:
            seconds = min(seconds, limit / 2)
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                for stream in self._quiet:
                    pipeline.xinfo_groups(stream.name)
                replies = pipeline.execute()
        except exceptions.ResponseError as error:
            if not _is_gone(error):
                raise
            return  # the next poll makes the group again
        positions: dict[Any, Any] = {
            stream.name: text(group["last-delivered-id"])
            for stream, groups in zip(self._quiet, replies, strict=True)
            for group in groups
            if text(group["name"]) == self._group
        }
        if positions:
            self._client.xread(positions, count=1, block=max(1, int(seconds * 1000)))


def _start_id(start: Literal["new", "all"] | datetime) -> str:
    """The id of the last entry before ``start``; "all" itself, as each stream has its own."""
    if isinstance(start, datetime):
        if start.tzinfo is None:
            raise ValueError("start must have a timezone")
        return f"{max(0, int(start.timestamp() * 1000) - 1)}-{2**64 - 1}"
    if start not in ("new", "all"):
        raise ValueError("start must be 'new', 'all' or a datetime")
    return "$" if start == "new" else "all"


def _is_gone(error: exceptions.ResponseError) -> bool:
    """Whether the store says that it has no such stream or group."""
    return "NOGROUP" in str(error) or "no such key" in str(error)


def _change(partition: int, entry: _Entry) -> Change:
    milliseconds, _, number = entry.id.partition("-")
    return Change(
        id=entry.id,
        version=f"{milliseconds:0>20}-{number:0>20}",
        partition=partition,
        cohort_id=entry.fields["cohort"],
        entered=entry.fields["change"] == "entered",
        at_ms=int(entry.fields["at"]),
        user_ids=tuple(json.loads(entry.fields["users"])),
        deliveries=entry.deliveries,
    )


def _entries(reply: Any) -> Iterator[tuple[str, dict[str, str]]]:
    """Entries of a stream as the client gives them, whatever ``decode_responses`` is."""
    for entry_id, fields in reply:
        yield text(entry_id), {text(name): text(value) for name, value in fields.items()}


def _read(reply: Any) -> list[tuple[str, dict[str, str]]]:
    """The entries in a reply about one stream; its form depends on the protocol's version."""
    if not reply:
        return []
    if isinstance(reply, dict):
        (entries,) = reply.values()
        return list(_entries(entries[0] if isinstance(entries[0], list) else entries))
    ((_, entries),) = reply
    return list(_entries(entries))
