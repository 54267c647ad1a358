"""Run one script on several partitions; optionally wait for replicas."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, cast

from redis import Redis

from app.store.connection.calls import NO_WAIT, Call, Wait
from app.store.connection.cluster import ClusterClient
from app.store.connection.fence import CHECK
from app.store.connection.script import StoreScript

# A copy's hold ends within this time unless it is renewed. One that would end later was set while
# the server's clock was ahead, and no longer counts.
LONGEST_HOLD_MS = 120_000

# Prepended by `load_script` to scripts that write: refuses to run during a hold (store/hold.py).
_HOLD_CHECK = (
    "do local base = string.match(KEYS[1], '^[^{]*{[^}]*}:') "
    "local left = base and redis.call('PTTL', base .. 'hold') or -2 "
    f"if left >= -1 and left <= {LONGEST_HOLD_MS} then "
    "return redis.error_reply('HELD Writes are on hold.') end end "
)

# Prepended to scripts that use it: fails if a key has another type. There is no rollback, so a
# script must find out before its first write.
_EXPECT = (
    "local function expect(kind, ...) for _, key in ipairs({...}) do "
    "local found = redis.call('TYPE', key).ok "
    "if found ~= kind and found ~= 'none' then "
    "error({err = 'WRONGTYPE A key is a ' .. found .. ' instead of a ' .. kind .. '.'}) end "
    "end end "
)


def load_script(client: Redis, name: str, folder: str = "lua") -> StoreScript:
    """Register the script in ``app/store/<folder>/<name>``.

    If it writes, it respects a hold and a deadline.
    """
    source = _source(name, folder)
    first, rest = source.split("\n", 1)
    if "no-writes" in first:
        return register(client, source)
    expect = _EXPECT if "expect(" in rest else ""
    return register_fenced(client, f"{first}\n{_HOLD_CHECK}{expect}{rest}")


@cache
def _source(name: str, folder: str) -> str:
    return (files("app.store") / folder / name).read_text()


def register(client: Redis, source: str) -> StoreScript:
    """Register a script as it is."""
    return cast(StoreScript, client.register_script(source))


def register_fenced(client: Redis, source: str) -> StoreScript:
    """Register a script that writes, so that it refuses to run after its deadline."""
    first, rest = source.split("\n", 1)
    script = register(client, f"{first}\n{CHECK}{rest}")
    script.fenced = True
    return script


def call_partitions(script: StoreScript, calls: Sequence[Call], wait: Wait = NO_WAIT) -> list[Any]:
    """Call a script for several partitions; on a cluster, on all nodes at once.

    A single store runs one script at a time, so it gets the calls one after the other.

    Returns:
        The replies, in the order of the calls.

    Raises:
        NotReplicated: all calls were made, but too few replicas acknowledged them in time.
    """
    client: Any = script.registered_client
    if isinstance(client, ClusterClient) and (len(calls) > 1 or script.fenced):
        return client.call(script, calls, wait)
    if script.fenced:
        return [client.write(script, call, wait) for call in calls]
    return [script.run(1, call.stream, *call.arguments()) for call in calls]
