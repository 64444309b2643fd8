"""Parse one log: the contract of the queue `parsing`, which a worker in any language can serve (B3.3)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from temporalio import activity

from activities.parsing.process import ParseTask
from activities.parsing.processes import ParserProcesses
from domain.errors import ParserLost


@dataclass
class ParseInput:
    """Which log, where its bytes are, and where the document of its `ParsedLog` is to be written."""

    tenant_id: str
    batch_id: str
    file_id: str
    generation: int
    name: str
    object_key: str
    size_bytes: int
    parsed_key: str
    trace_id: str = ""
    #: when the log was handed in, RFC 3339, for times without a year; empty for when its object was written
    written_at: str = ""


@dataclass
class ParseResult:
    """What was written, in figures; the SHA-256, in hex, is the document's."""

    parsed_key: str
    parsed_sha256: str
    lines: int
    parsed_lines: int
    format: str


@dataclass(frozen=True)
class ParseActivities:
    """The activity of the queue, as this project's own worker serves it."""

    parsers: ParserProcesses

    @activity.defn
    async def parse_log(self, input: ParseInput) -> ParseResult:
        """Parse the log in a process of its own, and tell where that is.

        An attempt starts from the beginning: parsing is a function of the object, so that whichever attempt
        writes the document writes the same bytes, and a log takes minutes at most. What would have to be kept
        to go on in the middle is the state of a decompressor, a reader and a hundred rules.
        """
        task = ParseTask(input.name, input.object_key, input.parsed_key, input.written_at)
        async with _heartbeats() as position:
            try:
                figures = await self.parsers.parse(task, position.update)
            except asyncio.CancelledError:
                if (details := activity.cancellation_details()) and details.worker_shutdown:
                    # nobody wants the log unparsed: another worker starts on it
                    raise ParserLost("The worker shuts down.") from None
                raise
        return ParseResult(
            parsed_key=input.parsed_key,
            parsed_sha256=figures.parsed_sha256,
            lines=figures.lines,
            parsed_lines=figures.parsed_lines,
            format=figures.format,
        )


@asynccontextmanager
async def _heartbeats() -> AsyncIterator[dict[str, int]]:
    """Tell the position four times in each heartbeat timeout, also while no process is free."""
    position = {"bytes": 0, "lines": 0}
    timeout = activity.info().heartbeat_timeout or timedelta(seconds=10)

    async def beat() -> None:
        while True:
            activity.heartbeat(dict(position))
            await asyncio.sleep(timeout.total_seconds() / 4)

    task = asyncio.create_task(beat())
    try:
        yield position
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
