"""Concurrent requests for one thing share one making of it."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class SingleFlight(Generic[Value]):
    """One making per key at a time within this process; an error goes to everyone who waited for it."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, asyncio.Task[Value]] = {}

    async def run(self, key: Hashable, make: Callable[[], Awaitable[Value]]) -> Value:
        """What `make` answers, made once for all who ask meanwhile."""
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.create_task(_made(make))
            self._flights[key] = flight
            flight.add_done_callback(lambda done: self._land(key, done))
        # a caller that leaves must not take the others' answer with it
        return await asyncio.shield(flight)

    def _land(self, key: Hashable, flight: "asyncio.Task[Value]") -> None:
        self._flights.pop(key, None)
        # if all callers have left, nobody else asks for the error
        if not flight.cancelled():
            flight.exception()


async def _made(make: Callable[[], Awaitable[Value]]) -> Value:
    return await make()
