"""The client of a cluster: sends each command to the node that has its keys.

It wraps redis-py's and adds what the service needs: it connects on first use, calls queue for a
free connection, pipelines may contain scripts, and script calls for several partitions are sent to
all nodes before any reply is awaited.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import redis
from redis import exceptions
from redis._parsers.encoders import Encoder
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.commands.core import CoreCommands
from redis.connection import Connection, ConnectionPool
from redis.retry import Retry

from app.store.connection.calls import NO_WAIT, Call, NotReplicated, Wait
from app.store.connection.fence import ServerClock, is_late
from app.store.connection.pool import FairLifoQueue, pooled
from app.store.connection.script import StoreScript
from app.store.connection.server import Server

# The second attempt comes after the slots have been read again.
_ATTEMPTS = 2

# Prepended to scripts that begin with `#!lua`. While a slot migrates, some of a script's keys are
# on another node, and would look missing. Asking for two keys that never exist fails on either node
# during a migration, before anything is written. A script whose key has no tag has no other keys.
_GUARD = (
    "do if string.find(KEYS[1], '{', 1, true) then "
    "redis.call('EXISTS', KEYS[1] .. ':none', KEYS[1] .. ':neither') end end "
)
_SHEBANG = "#!lua"


class ClusterClient(CoreCommands):
    """Has the commands of ``redis.Redis`` that the store uses.

    Args:
        connections: maximum calls at a time, and so connections to each node.
        timeout: longest wait for a free connection, in seconds.
    """

    _event_dispatcher: Any = None  # the library's commands read it

    def __init__(self, url: str, *, connections: int, timeout: float, **options: Any) -> None:
        self._url = url
        self._options = options
        self._timeout = timeout
        # Not a bounded pool for each node: two calls that need several nodes could each hold a
        # connection that the other one waits for.
        self._permits = FairLifoQueue(connections)
        for _ in range(connections):
            self._permits.put_nowait(None)
        self._connecting = threading.Lock()
        self._cluster: Any = None
        self._scripts: dict[str, StoreScript] = {}

    def execute_command(self, *args: Any, **options: Any) -> Any:
        with self._permit() as cluster:
            return cluster.execute_command(*args, **options)

    def pipeline(self, transaction: bool = True) -> Pipeline:
        """Commands that are sent together. In a transaction, all keys must be in one slot."""
        return Pipeline(self, transaction=transaction)

    def register_script(self, script: str | bytes) -> StoreScript:  # type: ignore[override]
        """Register a script. If it begins with ``#!lua``, it refuses to run in a migrating slot."""
        if isinstance(script, str) and script.startswith(_SHEBANG):
            first, rest = script.split("\n", 1)
            script = f"{first}\n{_GUARD}{rest}"
        registered = StoreScript(self, script)  # type: ignore[arg-type]
        self._scripts[registered.sha] = registered
        return registered

    def call(self, script: StoreScript, calls: Sequence[Call], wait: Wait) -> list[Any]:
        """Call a script for several partitions, on all nodes at once.

        Raises:
            NotReplicated: all calls were made, but too few replicas acknowledged them in time.
        """
        replies: list[Any] = [None] * len(calls)
        with self._permit() as cluster:
            waiting = list(range(len(calls)))
            began = time.monotonic()
            for attempt in range(1, _ATTEMPTS + 1):
                # The second time as text: the node may be another one, which lacks the script.
                command = ("EVALSHA", script.sha) if attempt == 1 else ("EVAL", script.script)
                some = [calls[n] for n in waiting]
                timeout = self._timeout if script.fenced else None
                found, acknowledged = _call_each(cluster, command, some, wait, timeout)
                failed = []
                for n, reply in zip(waiting, found, strict=True):
                    replies[n] = reply
                    if isinstance(reply, Exception):
                        if attempt == _ATTEMPTS or not _is_retryable(reply):
                            raise reply
                        if is_late(reply):
                            if time.monotonic() - began > self._timeout:
                                raise reply
                            # The clock of its node was changed.
                            _server_clock(cluster, _node(cluster, calls[n].stream), read=True)
                        failed.append(n)
                if not acknowledged:
                    raise NotReplicated
                if not failed:
                    return replies
                _learn_slots(cluster, [replies[n] for n in failed])
                waiting = failed
        raise AssertionError("the last attempt returns or raises")

    def write(self, script: StoreScript, call: Call, wait: Wait = NO_WAIT) -> Any:
        """Call a script that writes for one partition; see :meth:`call`."""
        return self.call(script, [call], wait)[0]

    def scan_iter(self, **options: Any) -> Iterator[Any]:  # type: ignore[override]
        """The keys of all nodes, one node after the other."""
        for node in self.primaries():
            yield from node.scan_iter(**options)

    def primaries(self) -> list[redis.Redis]:
        """A plain client of each primary."""
        with self._permit() as cluster:
            return [cluster.get_redis_connection(node) for node in cluster.get_primaries()]

    def script_text(self, sha: str) -> Any:
        """The text of a registered script."""
        return self._scripts[sha].script

    def get_encoder(self) -> Encoder:
        return Encoder("utf-8", "strict", False)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        if self._cluster:
            self._cluster.close()

    def __enter__(self) -> ClusterClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @contextmanager
    def _permit(self) -> Iterator[Any]:
        """Wait for a permit; yields the library's client."""
        try:
            self._permits.get(timeout=self._timeout)
        except queue.Empty:
            raise exceptions.ConnectionError("No connection available.") from None
        try:
            if self._cluster is None:
                with self._connecting:
                    if self._cluster is None:
                        self._cluster = self._connect()
            yield self._cluster
        except exceptions.MovedError as error:
            # Not a mistake in the settings: the slot moves, or its node was just replaced.
            raise exceptions.TryAgainError(str(error)) from error
        finally:
            self._permits.put_nowait(None)

    def _connect(self) -> Any:
        return _Cluster(
            url=self._url,
            connection_pool_class=partial(_Pool, self._learn_nodes),
            # One retry, after the slots have been read again. Nothing waits for a node that is
            # down: the sender will retry.
            retry=Retry(NoBackoff(), _ATTEMPTS - 1),
            reinitialize_steps=1,
            # The servers decide whether some partitions may be used while others are down.
            require_full_coverage=False,
            **self._options,
        )

    def _learn_nodes(self) -> None:
        """Ask the nodes that reply whether a replica has taken over from one that does not."""
        if self._cluster is not None:
            with suppress(exceptions.RedisError, exceptions.RedisClusterException):
                self._cluster.nodes_manager.initialize()


class Pipeline(CoreCommands):
    """redis-py's pipeline, which may also contain the store's scripts."""

    _event_dispatcher: Any = None

    def __init__(self, client: ClusterClient, *, transaction: bool) -> None:
        self._client = client
        self._transaction = transaction
        self._queue: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def execute_command(self, *args: Any, **options: Any) -> Pipeline:
        self._queue.append((args, options))
        return self

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands, self._queue = self._queue, []
        if not commands:
            return []
        with self._client._permit() as cluster:
            pipeline = _library_pipeline(cluster, transaction=self._transaction)
            for args, options in commands:
                _add(pipeline, cluster, args, options)
            replies: list[Any] = pipeline.execute(raise_on_error=False)
            for n, reply in enumerate(replies):
                if isinstance(reply, exceptions.NoScriptError):
                    (_, sha, *rest), options = commands[n]
                    text = self._client.script_text(sha)
                    replies[n] = cluster.execute_command("EVAL", text, *rest, **options)
            if raise_on_error:
                for reply in replies:
                    if isinstance(reply, Exception):
                        raise reply
        return replies

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._queue = []


class _Cluster(RedisCluster):
    """Does not retry timeouts: the caller has waited long enough."""

    ERRORS_ALLOW_RETRY = tuple(  # type: ignore[assignment]
        kind for kind in RedisCluster.ERRORS_ALLOW_RETRY if kind is not exceptions.TimeoutError
    )


class _Pool(ConnectionPool):
    """The connections to one node, limited by permits.

    Args:
        failed: called after each failed probe.
    """

    def __init__(
        self,
        failed: Callable[[], None],
        connection_class: type[Connection] = Connection,
        **options: Any,
    ) -> None:
        self._failed = failed
        self._server = Server(self._probe)
        super().__init__(connection_class=pooled(connection_class, self._server), **options)
        self.server_clock = ServerClock()

    def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        self._server.check()
        return super().get_connection()

    def _probe(self) -> None:
        try:
            connection: Any = super().get_connection()
            try:
                connection.send_command("PING")
                connection.read_response()
            finally:
                self.release(connection)
        except exceptions.RedisError:
            self._failed()
            raise

    def make_connection(self) -> Any:
        connection: Any = super().make_connection()
        connection.server_clock = self.server_clock
        return connection


def _call_each(
    cluster: Any,
    command: tuple[Any, Any],
    calls: Sequence[Call],
    wait: Wait,
    timeout: float | None,
) -> tuple[list[Any], bool]:
    """One attempt, with EVALSHA or EVAL.

    Args:
        timeout: seconds until the deadline that the script expects; None if it expects none.

    Returns:
        Replies or errors, and whether enough replicas acknowledged.
    """
    nodes = [_node(cluster, call.stream) for call in calls]
    pipeline = _library_pipeline(cluster, retries=0)
    try:
        deadlines = {
            node.name: [] if timeout is None else [_server_clock(cluster, node).deadline(timeout)]
            for node in nodes
        }
    except exceptions.ConnectionError as error:
        return [error] * len(calls), True
    for node, call in zip(nodes, calls, strict=True):
        args = (*call.arguments(), *deadlines[node.name])
        pipeline.execute_command(*command, 1, call.stream, *args, target_nodes=node)
    if wait.replicas:
        # WAIT covers the writes of its own connection only.
        for node in dict.fromkeys(nodes):
            pipeline.execute_command(*wait.command(), target_nodes=node)
    strategy = pipeline._execution_strategy
    try:
        replies = strategy.send_cluster_commands(
            strategy.command_queue, raise_on_error=False, allow_redirections=False
        )
    except exceptions.ConnectionError as error:
        # There is no connection to one of the nodes, so nothing was sent to any.
        return [error] * len(calls), True
    replies, waits = replies[: len(calls)], replies[len(calls) :]
    succeeded = {
        node.name
        for node, reply in zip(nodes, replies, strict=True)
        if not isinstance(reply, Exception)
    }
    acknowledged = True
    for node, reply in zip(dict.fromkeys(nodes), waits, strict=bool(waits)):
        if node.name not in succeeded:
            continue  # nothing was written; a node that is now a replica refuses WAIT
        if isinstance(reply, exceptions.ResponseError):
            raise reply
        acknowledged &= not isinstance(reply, Exception) and wait.satisfied(reply)
    return replies, acknowledged


def _learn_slots(cluster: Any, errors: Sequence[Exception]) -> None:
    """Find out which nodes have the slots of calls that failed."""
    for error in errors:
        if isinstance(error, exceptions.MovedError):
            # Right after a failover, perhaps only the node that replied knows the new primary.
            cluster.nodes_manager.move_slot(error)
    if any(isinstance(error, exceptions.ConnectionError) for error in errors):
        cluster.nodes_manager.initialize()


def _node(cluster: Any, key: str) -> Any:
    """The primary that has a key."""
    return cluster.nodes_manager.get_node_from_slot(cluster.keyslot(key))


def _server_clock(cluster: Any, node: Any, *, read: bool = False) -> ServerClock:
    """The clock of a node. Its connections read it when they connect; ``read`` reads it again."""
    pool = cluster.get_redis_connection(node).connection_pool
    clock: ServerClock = pool.server_clock
    if read or not clock.known:
        connection = pool.get_connection()
        try:
            if read:
                clock.read(connection)
        finally:
            pool.release(connection)
    return clock


def _is_retryable(error: Exception) -> bool:
    """Whether a second attempt may succeed. All calls are safe to repeat."""
    return is_late(error) or isinstance(
        error, (exceptions.MovedError, exceptions.ConnectionError, exceptions.NoScriptError)
    )


def _library_pipeline(
    cluster: Any, *, transaction: bool = False, retries: int = _ATTEMPTS - 1
) -> Any:
    pipeline = cluster.pipeline(transaction=transaction)
    pipeline.retry = Retry(NoBackoff(), retries)
    return pipeline


def _add(pipeline: Any, cluster: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    if args[0] == "EVALSHA":
        # Without a target, the library sends all arguments to a node to ask which are keys.
        node = cluster.nodes_manager.get_node_from_slot(cluster.keyslot(args[3]))
        pipeline.execute_command(*args, **options, target_nodes=node)
    else:
        pipeline.execute_command(*args, **options)
