"""Run one script on several partitions; optionally wait for replicas."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, cast

from redis import Redis, exceptions

from app.store.connection.calls import Call, NotReplicated, Wait
from app.store.connection.cluster import ClusterClient
from app.store.connection.script import StoreScript

NO_WAIT = Wait()


# Prepended to every script that writes: refuses to run during a hold (app/store/hold.py).
_HOLD_CHECK = (
    "do local base = string.match(KEYS[1], '^[^{]*{[^}]*}:') "
    "if base and redis.call('EXISTS', base .. 'hold') == 1 then "
    "return redis.error_reply('HELD Writes are on hold.') end end "
)


def load_script(client: Redis, name: str, folder: str = "lua") -> StoreScript:
    """Register the script in ``app/store/<folder>/<name>``; if it writes, it respects a hold."""
    source = (files("app.store") / folder / name).read_text()
    first, rest = source.split("\n", 1)
    if "no-writes" not in first:
        source = f"{first}\n{_HOLD_CHECK}{rest}"
    return register(client, source)


def register(client: Redis, source: str) -> StoreScript:
    """Register a script as it is."""
    return cast(StoreScript, client.register_script(source))


def call_partitions(script: StoreScript, calls: Sequence[Call], wait: Wait = NO_WAIT) -> list[Any]:
    """Call a script for several partitions; on a cluster, on all nodes at once.

    A single store runs one script at a time, so it gets the calls one after the other.

    Returns:
        The replies, in the order of the calls.

    Raises:
        NotReplicated: all calls were made, but too few replicas acknowledged them in time.
    """
    client: Any = script.registered_client
    if isinstance(client, ClusterClient):
        if len(calls) > 1 or wait.replicas:
            return client.call(script, calls, wait)
    elif wait.replicas:
        return [_and_wait(client, script, call, wait) for call in calls]
    return [script.run(1, call.stream, *call.args) for call in calls]


def _and_wait(client: Any, script: StoreScript, call: Call, wait: Wait) -> Any:
    # A pipeline, as WAIT covers the writes of its own connection only.
    with client.pipeline(transaction=False) as pipeline:
        for command in (("EVALSHA", script.sha), ("EVAL", script.script)):
            pipeline.execute_command(*command, 1, call.stream, *call.args)
            pipeline.execute_command(*wait.command())
            reply, acknowledged = pipeline.execute(raise_on_error=False)
            if not isinstance(reply, exceptions.NoScriptError):
                break
    for one in (reply, acknowledged):
        if isinstance(one, Exception):
            raise one
    if not wait.satisfied(acknowledged):
        raise NotReplicated
    return reply
