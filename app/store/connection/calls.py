"""What a script is called with for one partition, and what a write waits for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from redis import exceptions


class Call(NamedTuple):
    """A script call for one partition.

    Attributes:
        stream: the partition's change stream, from which the script derives all keys.
        args: the script's arguments, or a function that returns them when the call is sent: they
            may depend on how long it waited for a connection.
    """

    stream: str
    args: Sequence[Any] | Callable[[], Sequence[Any]]

    def arguments(self) -> Sequence[Any]:
        """The script's arguments now."""
        return self.args() if callable(self.args) else self.args


class Wait(NamedTuple):
    """What to wait for after a write.

    Attributes:
        replicas: how many replicas of each node written to must have the write; 0 for no wait.
        fsync: the node and these replicas must have it in their append-only files.
        timeout_ms: longest wait.
    """

    replicas: int = 0
    fsync: bool = False
    timeout_ms: int = 1000

    def command(self) -> tuple[Any, ...]:
        if self.fsync:
            return "WAITAOF", 1, self.replicas, self.timeout_ms
        return "WAIT", self.replicas, self.timeout_ms

    def satisfied(self, reply: Any) -> bool:
        if self.fsync:
            return bool(reply[0] >= 1 and reply[1] >= self.replicas)
        return bool(reply >= self.replicas)


NO_WAIT = Wait()


class NotReplicated(exceptions.RedisError):
    """Too few replicas acknowledged a write in time. It may be lost if its node fails."""
