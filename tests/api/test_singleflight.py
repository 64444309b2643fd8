"""Concurrent requests for one thing share one making of it."""

import asyncio

import pytest

from api.singleflight import SingleFlight


async def test_a_hundred_concurrent_callers_make_one_read() -> None:
    reads = 0

    async def read() -> int:
        nonlocal reads
        reads += 1
        await asyncio.sleep(0.01)
        return reads

    flights: SingleFlight[int] = SingleFlight()

    assert await asyncio.gather(*(flights.run("key", read) for _ in range(100))) == [1] * 100
    assert await flights.run("key", read) == 2


async def test_a_caller_that_leaves_does_not_take_the_answer_with_it() -> None:
    release = asyncio.Event()

    async def read() -> str:
        await release.wait()
        return "answer"

    flights: SingleFlight[str] = SingleFlight()
    first = asyncio.create_task(flights.run("key", read))
    second = asyncio.create_task(flights.run("key", read))
    await asyncio.sleep(0)
    first.cancel()
    release.set()

    assert await second == "answer"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_an_error_goes_to_everyone_and_is_not_kept() -> None:
    async def fail() -> str:
        await asyncio.sleep(0)
        raise ValueError("no")

    async def succeed() -> str:
        return "yes"

    flights: SingleFlight[str] = SingleFlight()
    outcomes = await asyncio.gather(*(flights.run("key", fail) for _ in range(3)), return_exceptions=True)

    assert [type(each) for each in outcomes] == [ValueError] * 3
    assert await flights.run("key", succeed) == "yes"
