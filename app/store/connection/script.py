"""A registered script: called by its digest, and sent as text to a server that lacks it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from redis import exceptions
from redis.commands.core import Script

from app.store.connection.calls import Call


class StoreScript(Script):
    """A script whose call takes at most two commands: EVALSHA, then EVAL.

    The library loads a missing script and then calls it by its digest again. During a failover,
    these two may reach different servers, and the call fails as if the script were unknown.

    Attributes:
        fenced: the script writes, and refuses to run after a deadline (fence.py).
    """

    fenced = False

    def __call__(
        self,
        keys: Iterable[Any] | None = None,
        args: Iterable[Any] | None = None,
        client: Any = None,
    ) -> Any:
        named = list(keys or ())
        if client is not None:  # a pipeline
            return super().__call__(named, args, client)
        return self.run(len(named), *named, *(args or ()))

    def run(self, *call: Any) -> Any:
        """Call the script with the number of its keys, the keys and the arguments."""
        client: Any = self.registered_client
        if self.fenced:
            _, key, *args = call
            return client.write(self, Call(key, args))
        execute: Any = client.execute_command
        try:
            return execute("EVALSHA", self.sha, *call)
        except exceptions.NoScriptError:
            return execute("EVAL", self.script, *call)
