"""Parsing logs in processes of their own: killed, hanging, cancelled, shut down; alive for all that time."""

import asyncio
import hashlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from temporalio.activity import ActivityCancellationDetails
from temporalio.testing import ActivityEnvironment

from activities.parse import ParseActivities, ParseInput, ParseResult
from activities.parsing.parser import parse
from activities.parsing.process import ParsedFigures, ParseTask
from activities.parsing.processes import ParserProcesses
from db.objects.store import ObjectStoreFiles
from domain.documents import decode, encode
from domain.errors import NotFound, ParserLost
from domain.logs import Level, LogFormat, ParsedLog
from runtime.parser import parser_command

TIMEOUT_SECONDS, STILL_SECONDS = 3.0, 1.7
WRITTEN_AT = datetime(2026, 3, 2, tzinfo=UTC)
TASK = ParseTask("ota.log", "log", "parsed", WRITTEN_AT.isoformat())
INPUT = ParseInput(
    tenant_id="t",
    batch_id="b",
    file_id="f",
    generation=1,
    name="ota.log",
    object_key="log",
    size_bytes=0,
    parsed_key="parsed",
    written_at=WRITTEN_AT.isoformat(),
)
SHORT = b"".join(
    b"Mar  1 10:00:%02d vehicle ota[%d]: %s\n" % (second, second, message)
    for second in range(60)
    for message in (b"download of part 7 done", b"error: signature of part 7 is wrong")
)
#: long enough to be met in the middle
LONG = SHORT * 150


class Store(ObjectStoreFiles):
    """A store with one log in it."""

    url = ""

    async def put(self, content: bytes) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            yield content

        await self.write("log", chunks())


@pytest.fixture
async def store(tmp_path: Path) -> Store:
    url = f"file://{tmp_path}"
    store = Store.at(url)
    assert isinstance(store, Store)
    store.url = url
    return store


@asynccontextmanager
async def parsers(store: Store, count: int = 1, stall_seconds: float = 60) -> AsyncIterator[ParserProcesses]:
    async with ParserProcesses(parser_command(store.url), count, stall_seconds=stall_seconds) as processes:
        yield processes
    assert not children()


def children() -> list[psutil.Process]:
    """The processes that parse."""
    return [each for each in psutil.Process().children() if "runtime.parser" in each.cmdline()]


def in_this_process(content: bytes) -> bytes:
    return encode(parse("ota.log", [content], written_at=WRITTEN_AT))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def nobody(_: Mapping[str, int]) -> None:
    """Hear of no position."""


async def test_a_log_becomes_a_document_that_says_how_much_of_it_was_read(store: Store) -> None:
    await store.put(SHORT)
    async with parsers(store) as processes:
        figures = await processes.parse(TASK, nobody)
    document = await store.read("parsed")
    assert figures == ParsedFigures(hashlib.sha256(document).hexdigest(), 120, 120, "text")
    parsed = decode(ParsedLog, document)
    assert (parsed.format, parsed.size_bytes, parsed.coverage) == (LogFormat.TEXT, len(SHORT), 1.0)
    assert parsed.levels == {Level.ERROR: 60}
    assert (parsed.first_at, parsed.last_at) == ("2026-03-01T10:00:00+00:00", "2026-03-01T10:00:59+00:00")
    assert [(each.count, each.level) for each in parsed.templates] == [(60, None), (60, Level.ERROR)]
    assert document == in_this_process(SHORT)


async def test_a_killed_parser_fails_the_attempt_and_the_next_one_writes_what_an_unbroken_one_would(
    store: Store,
) -> None:
    await store.put(LONG)
    positions: list[Mapping[str, int]] = []
    async with parsers(store) as processes:
        attempt = asyncio.create_task(processes.parse(TASK, positions.append))
        await until(lambda: positions)
        (parser,) = children()
        parser.kill()
        with pytest.raises(ParserLost) as lost:
            await attempt
        assert lost.value.retryable
        with pytest.raises(NotFound):
            await store.read("parsed")
        await processes.parse(TASK, nobody)
        assert parser not in children()
    assert await store.read("parsed") == in_this_process(LONG)


async def test_processes_are_kept_from_log_to_log_and_are_no_more_than_stated(store: Store) -> None:
    await store.put(SHORT)
    async with parsers(store, count=2) as processes:
        await asyncio.gather(*(processes.parse(TASK, nobody) for _ in range(6)))
        kept = {each.pid for each in children()}
        assert len(kept) == 2
        (killed, other) = kept
        os.kill(killed, signal.SIGKILL)
        with suppress(ParserLost):  # where its end was not heard of yet
            await processes.parse(TASK, nobody)
        await processes.parse(TASK, nobody)
        assert other in {each.pid for each in children()}


async def test_what_is_wrong_with_a_log_is_said_and_the_process_stays_without_secrets_and_bounded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASSAY_API__KEY", "secret")
    async with parsers(store) as processes:
        with pytest.raises(NotFound):
            await processes.parse(replace(TASK, object_key="elsewhere"), nobody)
        (parser,) = children()
        await store.put(SHORT)
        await processes.parse(TASK, nobody)
        assert children() == [parser]
        assert "ASSAY_API__KEY" not in parser.environ()
        assert parser.rlimit(psutil.RLIMIT_DATA)[1] == 1024**3


async def test_a_parser_that_hangs_is_ended(store: Store) -> None:
    hanging = (sys.executable, "-c", "import time; time.sleep(600)", "runtime.parser")
    async with ParserProcesses(hanging, 1, stall_seconds=0.3) as processes:
        with pytest.raises(ParserLost, match=r"0\.3 s"):
            await processes.parse(TASK, nobody)
        assert not children()


async def test_the_activity_is_never_silent_for_half_the_timeout_though_the_parser_stands_still(
    store: Store,
) -> None:
    await store.put(SHORT)
    told: list[float] = []
    environment = an_environment(timedelta(seconds=TIMEOUT_SECONDS))
    environment.on_heartbeat = lambda *_: told.append(time.monotonic())
    async with parsers(store) as processes:
        attempt = asyncio.create_task(run(environment, processes))
        await until(children)
        (parser,) = children()
        parser.suspend()
        await asyncio.sleep(STILL_SECONDS)
        assert not attempt.done()
        parser.resume()
        result = await attempt
    gaps = [after - before for before, after in pairwise([*told, time.monotonic()])]
    assert len(gaps) > 2
    assert max(gaps) <= TIMEOUT_SECONDS / 2
    assert result == ParseResult(
        "parsed", hashlib.sha256(in_this_process(SHORT)).hexdigest(), 120, 120, "text"
    )


async def test_a_cancelled_activity_stops_and_one_whose_worker_shuts_down_is_for_another_worker(
    store: Store,
) -> None:
    await store.put(LONG)
    async with parsers(store) as processes:
        for shutdown, ending in ((False, asyncio.CancelledError), (True, ParserLost)):
            environment, told = an_environment(timedelta(seconds=0.1)), list[int]()
            environment.on_heartbeat = lambda position, told=told: told.append(position["bytes"])
            attempt = asyncio.create_task(run(environment, processes))
            await until(lambda told=told: any(told))
            environment.cancel(
                cancellation_details=ActivityCancellationDetails(
                    cancel_requested=not shutdown, worker_shutdown=shutdown
                )
            )
            with pytest.raises(ending):
                await attempt
            assert not children()


def an_environment(heartbeat_timeout: timedelta) -> ActivityEnvironment:
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, heartbeat_timeout=heartbeat_timeout)
    return environment


async def run(environment: ActivityEnvironment, processes: ParserProcesses) -> ParseResult:
    result: ParseResult = await environment.run(ParseActivities(processes).parse_log, INPUT)
    return result
