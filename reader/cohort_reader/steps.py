"""Logic that is written once and runs blocking or on asyncio.

The logic is a generator that yields what calls of the client return:
``reply = yield client.get(key)``. A blocking client has returned the reply itself, and :func:`run`
sends it back. A client of ``redis.asyncio`` has returned an awaitable, and :func:`run_async` awaits
it. An error of the call is raised at the same ``yield`` in both.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

Steps = Generator[Any, Any, T]


def run(steps: Steps[T]) -> T:
    """Run to the end; what is yielded is a reply already."""
    try:
        reply = next(steps)
        while True:
            reply = steps.send(reply)
    except StopIteration as end:
        result: T = end.value
        return result


async def run_async(steps: Steps[T]) -> T:
    """Run to the end; what is yielded is awaited."""
    try:
        awaitable = next(steps)
        while True:
            try:
                reply = await awaitable
            except GeneratorExit:  # abandoned: nothing can be awaited any more
                with suppress(RuntimeError):
                    steps.close()
                raise
            except BaseException as error:  # noqa: BLE001 - the steps handle or raise it
                awaitable = steps.throw(error)
            else:
                awaitable = steps.send(reply)
    except StopIteration as end:
        result: T = end.value
        return result
