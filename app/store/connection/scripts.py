"""Calls of a script for several partitions, and waiting until replicas have what they wrote."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from redis import Redis, exceptions
from redis.commands.core import Script

from app.store.connection.calls import Call, NotReplicated, Wait
from app.store.connection.cluster import ClusterClient

NO_WAIT = Wait()


# Refuses to write while the partition is held (app/store/hold.py), within the atomic step.
_HOLD_CHECK = (
    "do local base = string.match(KEYS[1], '^[^{]*{[^}]*}:') "
    "if base and redis.call('EXISTS', base .. 'hold') == 1 then "
    "return redis.error_reply('HELD Writes are on hold.') end end "
)


def load_script(client: Redis, name: str, folder: str = "lua") -> Script:
    """The script in the file ``app/store/<folder>/<name>``, to be called through ``client``.

    Every script that writes to a partition respects a hold.
    """
    source = (files("app.store") / folder / name).read_text()
    first, rest = source.split("\n", 1)
    if "no-writes" not in first:
        source = f"{first}\n{_HOLD_CHECK}{rest}"
    return client.register_script(source)


def call_partitions(script: Script, calls: Sequence[Call], wait: Wait = NO_WAIT) -> list[Any]:
    """Call a script for each partition; on a cluster, on all nodes at once.

    A single store works on one call at a time, so there they go one after the other.

    Returns:
        the replies, in the order of the calls.

    Raises:
        NotReplicated: all calls were made, but too few replicas have acknowledged them in time.
    """
    client: Any = script.registered_client
    if isinstance(client, ClusterClient):
        if len(calls) > 1 or wait.replicas:
            return client.call(script, calls, wait)
    elif wait.replicas:
        return [_and_wait(client, script, call, wait) for call in calls]
    return [_call(client, script, call) for call in calls]


def _call(client: Any, script: Script, call: Call) -> Any:
    try:
        return client.execute_command("EVALSHA", script.sha, 1, call.stream, *call.args)
    except exceptions.NoScriptError:
        return script(keys=[call.stream], args=call.args)


def _and_wait(client: Any, script: Script, call: Call, wait: Wait) -> Any:
    # On one connection: a wait is for what its own connection has written.
    with client.pipeline(transaction=False) as pipeline:
        pipeline.execute_command("EVALSHA", script.sha, 1, call.stream, *call.args)
        pipeline.execute_command(*wait.command())
        reply, acknowledged = pipeline.execute(raise_on_error=False)
        if isinstance(reply, exceptions.NoScriptError):
            client.script_load(script.script)
            return _and_wait(client, script, call, wait)
    for one in (reply, acknowledged):
        if isinstance(one, Exception):
            raise one
    if not wait.satisfied(acknowledged):
        raise NotReplicated
    return reply
