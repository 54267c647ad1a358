"""Asyncio classes of the reader, called as the blocking ones are: one test runs for both."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from tests.support.polling import DEADLINE


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any], timeout: float | None = None) -> Any:
        """What a coroutine returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout)

    def make(self, factory: Callable[[], Any]) -> Any:
        """What a factory returns on the loop."""

        async def build() -> Any:
            return factory()

        return self.run(build())

    def call(self, function: Callable[[], object]) -> None:
        """Call a function on the loop."""
        self._loop.call_soon_threadsafe(function)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        self._loop.close()


class Blocking:
    """An asyncio object whose methods block. Functions that it is given run in threads."""

    def __init__(self, wrapped: Any, loop: Loop) -> None:
        self._wrapped, self._loop = wrapped, loop

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._wrapped, name)
        if name == "stop":
            return lambda: self._loop.call(attribute)
        if inspect.isasyncgenfunction(attribute):
            return lambda *args: iter(self._loop.run(_collect(attribute(*args))))
        if not inspect.iscoroutinefunction(attribute):
            return attribute

        def call(*args: Any, **options: Any) -> Any:
            return self._loop.run(attribute(*map(_as_async, args), **options))

        return call


async def _collect(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


def _as_async(argument: Any) -> Any:
    if not callable(argument):
        return argument

    async def handler(change: Any) -> Any:
        return await asyncio.to_thread(argument, change)

    return handler
