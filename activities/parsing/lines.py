"""The lines of stored logs, for whoever looks closer: `domain.logs.LogLines` over the object store."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from itertools import islice

from activities.parsing.reader import open_log
from domain.errors import ObjectStoreUnavailable
from domain.logs import LogFile, LogLine
from domain.ports import Objects

#: what any answer may hold, whatever is asked for
MAX_LINES = 1_000
MAX_REACH = 200
#: lines that a thread reads before it looks up: it must not outlive a question for long
_STEP_LINES = 5_000
#: steps at once: more threads only take each other's time
_AT_ONCE = 4
_PART_SECONDS = 60.0

Keep = Callable[[LogLine], bool]


class StoredLogLines:
    """Reads logs anew for each question, in threads, with memory that does not grow with a log."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def search(
        self, log: LogFile, terms: Sequence[str], *, first: int = 1, limit: int = 20
    ) -> list[LogLine]:
        """The first lines from number `first` on that hold one of the terms, whatever their case."""
        wanted = tuple(term.casefold() for term in terms if term)

        def keep(line: LogLine) -> bool:
            text = line.text.casefold()
            return line.number >= first and any(term in text for term in wanted)

        return await self._first(log, keep, limit) if wanted else []

    async def around(self, log: LogFile, line: int, *, member: str = "", reach: int = 5) -> list[LogLine]:
        """The line and its neighbours, at most `MAX_REACH` on either side; blank lines are left out."""
        start, end = line - min(reach, MAX_REACH), line + min(reach, MAX_REACH)
        found = []
        async with aclosing(self._scan(log, lambda each: each.member == member)) as lines:
            async for each in lines:
                if each.number > end:
                    break
                if each.number >= start:
                    found.append(each)
        return found

    async def between(self, log: LogFile, since: datetime, until: datetime, *, limit: int) -> list[LogLine]:
        """The first lines of that stretch of time, both ends included.

        A line without a time, as of a stack trace, stands with the one before it.
        """
        begin, end = _aware(since), _aware(until)
        last: datetime | None = None

        def keep(line: LogLine) -> bool:
            nonlocal last
            last = line.at or last
            return last is not None and begin <= last <= end

        return await self._first(log, keep, limit)

    async def read(self, log: LogFile) -> AsyncGenerator[LogLine, None]:
        """All lines, unpacked and decoded as parsing sees them."""
        async with aclosing(self._scan(log, lambda _: True)) as lines:
            async for line in lines:
                yield line

    async def _first(self, log: LogFile, keep: Keep, limit: int) -> list[LogLine]:
        found: list[LogLine] = []
        async with aclosing(self._scan(log, keep)) as lines:
            async for line in lines:
                if len(found) >= min(limit, MAX_LINES):
                    break
                found.append(line)
        return found

    async def _scan(self, log: LogFile, keep: Keep) -> AsyncGenerator[LogLine, None]:
        loop = asyncio.get_running_loop()
        async with aclosing(self._objects.stream(log.object_key)) as stream:
            lines = open_log(log.name, _awaited(stream, loop))
            while (batch := await self._next_step(lines, keep)) is not None:
                for line in batch:
                    yield line

    async def _next_step(self, lines: Iterator[LogLine], keep: Keep) -> list[LogLine] | None:
        # a place is held for a step only: whoever reads one log may ask for another meanwhile
        async with self._places:
            return await _to_its_end(lines, keep)


async def _to_its_end(lines: Iterator[LogLine], keep: Keep) -> list[LogLine] | None:
    """One step in a thread, which is waited for even when nobody wants it any more: it uses the stream."""
    step = asyncio.ensure_future(asyncio.to_thread(_step, lines, keep))
    try:
        return await asyncio.shield(step)
    finally:
        if not step.done():
            await asyncio.wait([step])


def _step(lines: Iterator[LogLine], keep: Keep) -> list[LogLine] | None:
    """What is kept of the next lines; `None` at the end."""
    batch = list(islice(lines, _STEP_LINES))
    return [line for line in batch if keep(line)] if batch else None


def _awaited(stream: AsyncGenerator[bytes, None], loop: asyncio.AbstractEventLoop) -> Iterator[bytes]:
    """The stream's parts, for a thread that is not the loop's."""
    while True:
        part = asyncio.run_coroutine_threadsafe(_next(stream), loop)
        try:
            chunk = part.result(_PART_SECONDS)
        except TimeoutError:
            part.cancel()
            raise ObjectStoreUnavailable(f"No part of a log came within {_PART_SECONDS:.0f} s.") from None
        if chunk is None:
            return
        yield chunk


async def _next(stream: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(stream, None)


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
