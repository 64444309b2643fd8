"""The text of a diagnosis reaches whoever listens, in bounded messages, and never holds up its writer."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from db.redis.connection import RedisLink
from db.redis.diagnosis_texts import (
    MAX_MESSAGE_BYTES,
    MAX_WAITING_CHARACTERS,
    RedisDiagnosisTexts,
    diagnosis_channel,
)
from domain.diagnosis import DiagnosisDelta
from runtime.embedded import Addresses


@pytest.fixture
async def redis(addresses: Addresses) -> AsyncIterator[RedisLink]:
    link = RedisLink.to(addresses.redis_url, max_connections=10, timeout_seconds=5)
    yield link
    await link.close()


async def subscribed(redis: RedisLink) -> None:
    """Until the server knows of the subscription: what is said before reaches nobody."""
    nobody = json.dumps({"batch_id": "nobody", "text": "", "offset": 0})
    async with asyncio.timeout(10):
        while not await redis.client.publish(diagnosis_channel("nobody"), nobody):
            await asyncio.sleep(0.01)


async def heard(queue: "asyncio.Queue[DiagnosisDelta]", characters: int) -> list[DiagnosisDelta]:
    found: list[DiagnosisDelta] = []
    async with asyncio.timeout(10):
        while sum(len(each.text) for each in found) < characters:
            found.append(await queue.get())
    return found


async def test_every_listener_hears_all_of_its_batch_and_nothing_of_others(redis: RedisLink) -> None:
    writer, reader = RedisDiagnosisTexts(redis), RedisDiagnosisTexts(redis)
    async with (
        reader.listening("one") as first,
        reader.listening("one") as second,
        reader.listening("two") as other,
    ):
        await subscribed(redis)
        async with writer.publishing("one") as say:
            for word in ("The ", "slot", " is ", "壞了\ud83d.", '"\n'):
                say(word)
                await asyncio.sleep(0.03)
        found = await heard(first, 17)
        assert "".join(each.text for each in found) == 'The slot is 壞了?."\n'
        assert [each.offset for each in found] == [
            sum(len(each.text) for each in found[:n]) for n in range(len(found))
        ]
        assert len(found) < 5
        assert await heard(second, 17) == found
        assert other.empty()


async def test_a_listener_may_leave_at_any_moment_of_the_subscribing(redis: RedisLink) -> None:
    texts = RedisDiagnosisTexts(redis)

    async def listens(turns: int) -> None:
        async with texts.listening("one"):
            for _ in range(turns):
                # some of them meet the driver where it swallows a cancellation
                await asyncio.sleep(0.0001 * turns)

    async with asyncio.timeout(20):
        for turns in range(60):
            await listens(turns % 12)


async def test_long_text_goes_in_messages_that_are_never_over_the_limit(redis: RedisLink) -> None:
    texts = RedisDiagnosisTexts(redis)
    text = "".join(f"{n} 電池 \x01\\ " for n in range(3_000))
    async with redis.client.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(diagnosis_channel("long"))
        async with texts.listening("long") as queue:
            await subscribed(redis)
            async with texts.publishing("long") as say:
                say(text)
            found = await heard(queue, len(text))
        sizes: list[int] = []
        while len(sizes) < len(found):
            message = await pubsub.get_message(timeout=5)
            if message is not None:
                sizes.append(len(message["data"].encode()))
    assert "".join(each.text for each in found) == text
    assert len(sizes) > 1
    assert max(sizes) <= MAX_MESSAGE_BYTES


async def test_what_is_beyond_the_bound_is_lost_and_the_offset_shows_it(redis: RedisLink) -> None:
    texts = RedisDiagnosisTexts(redis)
    async with texts.listening("flood") as queue:
        await subscribed(redis)
        async with texts.publishing("flood") as say:
            say("x" * (MAX_WAITING_CHARACTERS + 5))
        found = await heard(queue, MAX_WAITING_CHARACTERS)
    assert found[0].offset == 5


async def test_a_writer_without_redis_goes_on() -> None:
    link = RedisLink.to("redis://127.0.0.1:1/0", max_connections=2, timeout_seconds=0.2)
    async with RedisDiagnosisTexts(link).publishing("gone") as say:
        say("nobody hears this")
        await asyncio.sleep(0)
    assert link.degraded
    await link.close()
