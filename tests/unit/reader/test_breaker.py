"""How many coroutines ask the store at a time, and what becomes of those that are cancelled."""

from __future__ import annotations

import asyncio

from cohort_reader.breaker import Limit


async def work(limit: Limit, done: list[int], number: int) -> None:
    if not limit.enter():
        await limit.wait()
    try:
        await asyncio.sleep(0)
        done.append(number)
    finally:
        limit.leave()


def test_limit__with_more_coroutines_than_places__serves_them_in_their_order() -> None:
    async def run() -> list[int]:
        limit, done = Limit(1), list[int]()
        await asyncio.gather(*(work(limit, done, number) for number in range(9)))
        assert limit.enter()
        assert not limit.enter()
        return done

    assert asyncio.run(run()) == list(range(9))


def test_limit__whoever_is_cancelled__loses_no_place() -> None:
    async def run(cancelled_after: int) -> None:
        limit, done = Limit(2), list[int]()
        tasks = [asyncio.create_task(work(limit, done, number)) for number in range(6)]
        for _ in range(cancelled_after):
            await asyncio.sleep(0)
        for number in (0, 2, 3):
            tasks[number].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert {1, 4, 5} <= set(done)
        assert [limit.enter() for _ in range(3)] == [True, True, False]

    for cancelled_after in range(8):
        asyncio.run(run(cancelled_after))
