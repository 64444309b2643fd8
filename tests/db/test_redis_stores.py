"""Redis gone, frozen and full: everything goes on without it, and back to it by itself."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from redis.exceptions import ResponseError

from db.redis.barrier import RedisBarrier, barrier_key
from db.redis.cache import RedisReportCache, RedisResultCache, report_key, result_key
from db.redis.connection import RedisLink
from db.redis.progress import BellHub, RedisBell, RedisStatePublisher, workflow_state_key
from domain.batch import AgentState
from domain.errors import RedisUnavailable
from runtime.embedded import ValkeyServer
from tests.db.stage import until

RESULTS = [{"question_id": "q1", "score": 1.0, "评语": "好"}, {"question_id": "q2", "score": 2.5}]


@contextmanager
def frozen(server: ValkeyServer) -> Iterator[None]:
    """The server holds its connections and answers nobody."""
    assert server.child is not None
    assert server.child.pid is not None
    os.kill(server.child.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.child.pid, signal.SIGCONT)


async def _answers(link: RedisLink) -> bool:
    try:
        await link.ping()
    except RedisUnavailable:
        return False
    return True


async def test_a_frozen_redis_is_waited_for_once_and_recovered_from(
    valkey: ValkeyServer, own_link: RedisLink
) -> None:
    await own_link.ping()
    assert not own_link.degraded
    with frozen(valkey):
        with pytest.raises(RedisUnavailable):
            await own_link.ping()
        assert own_link.degraded
        # the others are refused at once, not each after its own time-out
        began = time.monotonic()
        for _ in range(100):
            with pytest.raises(RedisUnavailable):
                await own_link.ping()
        assert time.monotonic() - began < 10, "fifty seconds, were it each after its own"
    await until(lambda: _answers(own_link))
    assert not own_link.degraded


async def test_everything_goes_on_without_redis_and_back_to_it(
    valkey: ValkeyServer, own_link: RedisLink
) -> None:
    results, reports = RedisResultCache(own_link), RedisReportCache(own_link)
    states, barrier = RedisStatePublisher(own_link), RedisBarrier(own_link)
    hub = BellHub(own_link, "channel:*")
    listening = asyncio.create_task(hub.run())
    try:
        await until(lambda: own_link.client.pubsub_numpat())
        mark = await results.mark("s1")
        await results.write("s1", RESULTS, mark)
        await reports.write("b1", {"batch": "b1"}, mark=await reports.mark("b1"))
        await valkey.stop()
        assert await results.read("s1", ["q1", "q2"]) is None
        assert await reports.read("b1") is None
        assert await reports.mark("b1") is None
        await reports.write("b1", {"batch": "b1"}, mark="of earlier")
        await reports.forget("b1")
        await states.publish("w1", "s1", AgentState(stage="grading"))
        assert await states.read("w1") is None
        for refused in (
            results.write("s1", RESULTS, mark),
            results.mark("s1"),
            results.forget("s1"),
            barrier.arrive("b1", "f1"),
            barrier.count("b1"),
            RedisBell(own_link).ring(),
        ):
            with pytest.raises(RedisUnavailable):
                await refused
        waiting = asyncio.create_task(hub.wait("channel:outbox", 30))
        await valkey.start()
        # the subscription is made anew, and wakes whoever may have missed a bell meanwhile
        assert await waiting
        await until(lambda: _answers(own_link))
        # an empty cache is no stale cache
        assert await results.read("s1", ["q1", "q2"]) is None
        await results.write("s1", RESULTS, await results.mark("s1"))
        assert await results.read("s1", ["q1", "q2"]) == RESULTS
        waiting = asyncio.create_task(hub.wait("channel:outbox", 30))
        await asyncio.sleep(0)
        await RedisBell(own_link).ring()
        assert await waiting
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def test_a_full_redis_refuses_the_saga_and_nobody_else(
    valkey: ValkeyServer, own_link: RedisLink
) -> None:
    results, reports = RedisResultCache(own_link), RedisReportCache(own_link)
    mark, report_mark = await results.mark("s1"), await reports.mark("b1")
    await results.write("s1", RESULTS, mark)
    await own_link.client.config_set("maxmemory-policy", "noeviction")
    await own_link.client.config_set("maxmemory", "1")
    with pytest.raises(ResponseError, match="maxmemory"):
        await results.write("s1", RESULTS, mark)
    # undoing it needs no memory
    await results.forget("s1")
    assert await results.read("s1", ["q1", "q2"]) is None
    # what may be lost is lost without a word to its caller
    await reports.write("b1", {"batch": "b1"}, mark=report_mark)
    await RedisStatePublisher(own_link).publish("w1", "s1", AgentState(stage="grading"))
    assert await RedisReportCache(own_link).read("b1") is None
    # a refusal is no unreachability
    assert not own_link.degraded


async def test_a_cancelled_call_leaves_no_answer_for_the_next(redis: RedisLink, fresh: str) -> None:
    await redis.client.set(f"{fresh}:a", "a")
    await redis.client.set(f"{fresh}:b", "b")

    async def read(key: str) -> str | None:
        with redis.use() as client:
            found: str | None = await client.get(key)
            return found

    for turns in range(6):
        reading = asyncio.create_task(read(f"{fresh}:a"))
        for _ in range(turns):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert await read(f"{fresh}:b") == "b"


async def test_results_are_read_whole_or_not_at_all(redis: RedisLink, fresh: str) -> None:
    cache = RedisResultCache(redis)
    assert await cache.read(fresh, []) is None
    assert await cache.read(fresh, ["q1"]) is None
    await cache.write(fresh, RESULTS, await cache.mark(fresh))
    assert await cache.read(fresh, ["q2", "q1"]) == RESULTS[::-1]
    assert await cache.read(fresh, ["q1", "q2", "q3"]) is None
    assert 3590 < await redis.client.ttl(result_key(fresh, "q1")) <= 3600
    await cache.forget(fresh)
    assert await cache.read(fresh, ["q1"]) is None


async def test_a_late_writer_of_older_results_is_not_believed(redis: RedisLink, fresh: str) -> None:
    cache, older = RedisResultCache(redis), [each | {"score": 0} for each in RESULTS]
    late = await cache.mark(fresh)
    await cache.write(fresh, RESULTS, await cache.mark(fresh))
    await cache.write(fresh, older, late)
    assert await cache.read(fresh, ["q1", "q2"]) == RESULTS
    late = await cache.mark(fresh)
    assert await cache.read(fresh, ["q1", "q2"]) is None, "nothing old is served while it is replaced"
    await cache.forget(fresh)
    await cache.write(fresh, older, late)
    assert await cache.read(fresh, ["q1", "q2"]) is None


async def test_a_report_that_was_begun_before_it_was_forgotten_is_not_cached(
    redis: RedisLink, fresh: str
) -> None:
    cache = RedisReportCache(redis)
    begun = await cache.mark(fresh)
    assert await cache.mark(fresh) == begun, "rebuilds do not stand in each other's way"
    await cache.forget(fresh)
    await cache.write(fresh, {"name": "of the generation before"}, mark=begun)
    assert await cache.read(fresh) is None


async def test_reports_are_kept_for_ten_minutes(redis: RedisLink, fresh: str) -> None:
    cache = RedisReportCache(redis)
    await cache.write(fresh, {"name": "期末"}, mark=await cache.mark(fresh))
    assert await cache.read(fresh) == {"name": "期末"}
    assert 590 < await redis.client.ttl(report_key(fresh)) <= 600
    await cache.forget(fresh)
    assert await cache.read(fresh) is None


async def test_the_live_state_is_kept_for_a_day(redis: RedisLink, fresh: str) -> None:
    states = RedisStatePublisher(redis)
    state = AgentState(thread_id="t", stage="grading", percentage=33.3)
    await states.publish(fresh, "s1", state)
    assert await states.read(fresh) == state
    assert 86_000 < await redis.client.ttl(workflow_state_key(fresh)) <= 86_400
    stored = json.loads(await redis.client.get(workflow_state_key(fresh)))
    assert stored["stage"] == "grading"


async def test_the_barrier_counts_files_as_the_source_says(redis: RedisLink, fresh: str) -> None:
    """SADD 1, 1, 0, SCARD 2."""
    barrier = RedisBarrier(redis)
    assert [await barrier.arrive(fresh, each) for each in ("f1", "f2", "f1")] == [1, 1, 0]
    assert await barrier.count(fresh) == 2
    assert await redis.client.smembers(barrier_key(fresh)) == {"f1", "f2"}
    assert await barrier.rebuild(fresh, []) == 2
    assert await barrier.rebuild(f"{fresh}-large", [str(n) for n in range(2500)]) == 2500


async def test_a_wait_for_a_bell_ends_with_its_time(redis: RedisLink) -> None:
    hub = BellHub(redis, "channel:*")
    assert not await hub.wait("channel:nobody", 0.01)
    assert not hub._waiting


async def test_bells_wake_everyone_who_waits_for_their_channel_only(redis: RedisLink, fresh: str) -> None:
    hub = BellHub(redis, f"{fresh}:*")
    listening = asyncio.create_task(hub.run())
    try:
        await until(lambda: redis.client.pubsub_numpat())
        mine = [asyncio.create_task(hub.wait(f"{fresh}:mine", 60)) for _ in range(3)]
        other = asyncio.create_task(hub.wait(f"{fresh}:other", 60))
        await asyncio.sleep(0)
        # at the very beginning everybody is woken once: repeat until it is the message that woke
        while not all(each.done() for each in mine):
            await redis.client.publish(f"{fresh}:mine", "ring")
            await asyncio.sleep(0.01)
        assert all([await each for each in mine])
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)
        assert not hub._waiting
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
