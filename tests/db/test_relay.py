"""The relay: one batch's events are numbered without gaps and published in that order."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import psycopg
import pytest

from db.postgres.batches import PostgresBatches
from db.postgres.pool import Postgres
from db.redis.connection import RedisLink
from db.redis.progress import (
    BellHub,
    RedisBell,
    RedisPublisher,
    progress_channel,
    state_changes_channel,
)
from db.relay import OutboxRelay
from domain.batch import ProgressEvent
from domain.errors import RedisUnavailable
from domain.exam import Exam
from tests.db.stage import a_connection, events_of, pending_batch, stored_exam, until, waiting_for_a_lock

TELL = "INSERT INTO progress_events (batch_id, event_type, data) VALUES (%s, 'StatusChanged', %s)"


@pytest.fixture
async def postgres(own_postgres: Postgres) -> Postgres:
    """A relay numbers whatever waits, so each test has a database of its own."""
    return own_postgres


@pytest.fixture
async def exam(own_postgres: Postgres) -> Exam:
    return await stored_exam(own_postgres)


class Heard:
    """A publisher that remembers what it was given, in order."""

    def __init__(self) -> None:
        self.events: list[ProgressEvent] = []

    async def publish(self, events: Sequence[ProgressEvent]) -> None:
        self.events += events

    async def wait_for_ring(self, timeout_seconds: float) -> None:
        await asyncio.sleep(0)

    def numbers(self, batch_id: str) -> list[int]:
        return [event.number for event in self.events if event.batch_id == batch_id]


async def tell(postgres: Postgres, batch_id: str, count: int) -> None:
    for _ in range(count):
        await postgres.run(TELL, [batch_id, "{}"])


async def test_concurrent_writers_and_two_relays_leave_no_gap(postgres: Postgres, exam: Exam) -> None:
    batch_ids = [(await pending_batch(postgres, exam)).id for _ in range(3)]
    heard = Heard()
    relays = [asyncio.create_task(OutboxRelay(postgres, heard).run()) for _ in range(2)]
    try:
        await asyncio.gather(*(tell(postgres, each, 15) for each in batch_ids for _ in range(2)))
        await until(lambda: _all_heard(heard, 3 * 31))
    finally:
        for relay in relays:
            relay.cancel()
        await asyncio.gather(*relays, return_exceptions=True)
    for batch_id in batch_ids:
        # each exactly once; the order between two relays' publications is their own
        assert sorted(heard.numbers(batch_id)) == list(range(1, 32))
        stored = await PostgresBatches(postgres).events_after(batch_id, 0, 100)
        assert [event.number for event in stored] == list(range(1, 32))
        assert stored[0].event_type == "BatchCreated"


async def _all_heard(heard: Heard, count: int) -> bool:
    return len(heard.events) >= count


async def test_one_relay_publishes_in_order_over_several_rounds(postgres: Postgres, exam: Exam) -> None:
    batch = await pending_batch(postgres, exam)
    heard = Heard()
    relay = OutboxRelay(postgres, heard)
    for _ in range(3):
        await tell(postgres, batch.id, 4)
        await relay.relay_once()
    assert heard.numbers(batch.id) == list(range(1, 14))
    assert [event.event_id for event in heard.events] == [
        str(each["event_id"]) for each in await events_of(postgres, batch.id)
    ]
    assert await relay.relay_once() == 0


async def test_a_second_relay_stands_by_while_the_first_works(
    postgres: Postgres, exam: Exam, database_url: str
) -> None:
    await pending_batch(postgres, exam)
    first, second = Heard(), Heard()
    async with await a_connection(database_url) as slow:
        # the first relay's update waits for this row
        await slow.execute("SELECT 1 FROM progress_events FOR UPDATE")
        working = asyncio.create_task(OutboxRelay(postgres, first).relay_once())
        await waiting_for_a_lock(postgres)
        assert await OutboxRelay(postgres, second).relay_once() == 0
        await slow.rollback()
    assert await working == 1
    assert (len(first.events), second.events) == (1, [])


async def test_an_event_committed_behind_a_later_one_is_still_numbered(
    postgres: Postgres, exam: Exam, database_url: str
) -> None:
    batch = await pending_batch(postgres, exam)
    heard = Heard()
    relay = OutboxRelay(postgres, heard)
    async with await a_connection(database_url) as late:
        await late.execute(TELL, [batch.id, '{"order": "late"}'])
        await tell(postgres, batch.id, 1)
        assert await relay.relay_once() == 2
        await late.commit()
    assert await relay.relay_once() == 1
    assert heard.numbers(batch.id) == [1, 2, 3]
    assert heard.events[-1].data == {"order": "late"}
    ids = [each["id"] for each in await events_of(postgres, batch.id) if each["number"] == 3]
    assert ids < [each["id"] for each in await events_of(postgres, batch.id) if each["number"] == 2]


async def test_a_relay_that_dies_before_its_commit_has_numbered_nothing(
    postgres: Postgres, exam: Exam, database_url: str
) -> None:
    batch = await pending_batch(postgres, exam)
    heard = Heard()
    async with await a_connection(database_url) as slow:
        await slow.execute("SELECT 1 FROM progress_events FOR UPDATE")
        dying = asyncio.create_task(OutboxRelay(postgres, heard).relay_once())
        await waiting_for_a_lock(postgres)
        dying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dying
    assert heard.events == []
    assert await OutboxRelay(postgres, heard).relay_once() == 1
    assert heard.numbers(batch.id) == [1]


async def test_a_number_is_given_once(postgres: Postgres, exam: Exam) -> None:
    batch = await pending_batch(postgres, exam)
    await OutboxRelay(postgres, Heard()).relay_once()
    await tell(postgres, batch.id, 1)
    with pytest.raises(psycopg.errors.UniqueViolation):
        await postgres.run("UPDATE progress_events SET number = 1 WHERE number IS NULL")


async def test_the_relay_outlives_an_absent_postgres(postgres: Postgres, exam: Exam) -> None:
    batch = await pending_batch(postgres, exam)
    heard = Heard()
    await postgres.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    running = asyncio.create_task(OutboxRelay(postgres, heard).run())
    try:
        await until(lambda: _all_heard(heard, 1))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert heard.numbers(batch.id) == [1]


async def test_events_reach_their_channels_numbered_and_with_an_offset(
    postgres: Postgres, exam: Exam, redis: RedisLink
) -> None:
    batch = await pending_batch(postgres, exam)
    publisher = RedisPublisher(redis, BellHub(redis))
    async with redis.client.pubsub(ignore_subscribe_messages=True) as listening:
        await listening.subscribe(progress_channel(batch.id), state_changes_channel(batch.id))
        await listening.get_message(timeout=0.1)
        await tell(postgres, batch.id, 2)
        await OutboxRelay(postgres, publisher).relay_once()
        heard = [await _message(listening) for _ in range(6)]
    for channel in (progress_channel(batch.id), state_changes_channel(batch.id)):
        documents = [each["data"] for each in heard if each["channel"] == channel]
        assert [each["number"] for each in documents] == [1, 2, 3]
        assert all(each["timestamp"].endswith("+00:00") for each in documents)
        assert documents[0]["event_type"] == "BatchCreated"
        assert "file_id" not in documents[0]


async def _message(listening: object) -> dict[str, object]:
    message = await until(lambda: listening.get_message(timeout=1))  # type: ignore[attr-defined]
    return {"channel": message["channel"], "data": json.loads(message["data"])}


async def _rung(redis: RedisLink, waiting: "asyncio.Task[None]") -> bool:
    with suppress(RedisUnavailable):  # for a moment after a connection was lost
        await RedisBell(redis).ring()
    return waiting.done()


async def test_a_bell_wakes_the_relay_and_a_lost_connection_is_made_anew(redis: RedisLink) -> None:
    hub = BellHub(redis, "channel:outbox")
    publisher = RedisPublisher(redis, hub)
    running = asyncio.create_task(hub.run())
    try:
        for _ in range(2):
            await until(lambda: redis.client.pubsub_numpat())
            waiting = asyncio.create_task(publisher.wait_for_ring(600))
            await until(partial(_rung, redis, waiting), within_seconds=60)
            await redis.client.client_kill_filter(_type="pubsub")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
