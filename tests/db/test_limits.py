"""Rates and places: one arithmetic on both sides, all or nothing, nothing lost, and alone without Redis."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.exceptions import ConnectionError  # noqa: A004  # the driver's name

from db.redis.buckets import ACQUIRE, RELEASE, Buckets, Share, written
from db.redis.connection import RedisLink
from db.redis.limits import RedisRateLimits, limit_key
from domain.errors import LimitExceeded, RateLimited
from domain.gateway import Permit, RateLimit
from runtime.embedded import Addresses, ValkeyServer
from tests.db.stage import until

ASSAY = Path(__file__).resolve().parents[2]
CALLS = RateLimit("key/k", "calls", 2)
REQUESTS = RateLimit("key/k", "requests", 3)
TOKENS = RateLimit("key/k", "tokens", 1_000)


@pytest.fixture
async def limits(redis: RedisLink) -> AsyncIterator[RedisRateLimits]:
    limits = RedisRateLimits(redis)
    yield limits
    await limits.close()


async def take(
    limits: RedisRateLimits, tenant: str, *wanted: RateLimit, tokens: int = 1, lease_seconds: float = 60
) -> Permit:
    return await limits.acquire(tenant, wanted, tokens=tokens, lease_seconds=lease_seconds)


async def left(limits: RedisRateLimits, tenant: str, limit: RateLimit) -> int:
    """What a request without tokens finds left, itself taken off again."""
    if limit.unit == "calls":
        return limit.capacity - int(await limits._link.client.zcard(limit_key(tenant, limit)))
    level = await limits._link.client.hget(limit_key(tenant, limit), "level")
    return limit.capacity if level is None else int(level) // 60_000


# --- one arithmetic ---

SHARES = st.lists(
    st.sampled_from([("a", "requests"), ("b", "tokens"), ("c", "calls"), ("d", "tokens")]),
    unique=True,
    min_size=1,
    max_size=4,
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.integers(-2_000, 90_000)),
        st.tuples(st.just("take"), SHARES, st.integers(0, 40), st.integers(30_000, 60_000)),
        st.tuples(st.just("back"), st.integers(0, 5), st.integers(-60, 40)),
    ),
    max_size=12,
)
NOW = "local now = tonumber(table.remove(ARGV))\n"


@settings(max_examples=100)
@given(capacity=st.sampled_from([1, 7, 60, 1_000, 2_147_483_647]), steps=STEPS)
async def test_the_script_and_the_process_alone_decide_alike_to_the_last_bit(
    redis: RedisLink, capacity: int, steps: list[tuple[object, ...]]
) -> None:
    """Whatever is asked, given back and waited for, clocks that go back included."""
    mark = os.urandom(6).hex()
    acquire, release = (redis.client.register_script(NOW + each) for each in (ACQUIRE, RELEASE))
    alone, permits = Buckets(), list[tuple[str, list[Share]]]()
    # ahead of the server, which forgets by its own clock what is over
    now = 1_000 * (int((await redis.client.time())[0]) + 3_600)
    for step in steps:
        match step:
            case "pass", int(milliseconds):
                now += milliseconds
            case "take", list(chosen), int(amount), int(lease):
                wanted = [
                    Share(f"{mark}:{key}", unit, capacity, amount if unit == "tokens" else 1)
                    for key, unit in chosen
                ]
                permit = f"{mark}:{len(permits)}"
                permits.append((permit, wanted))
                keys = [permit, *(each.key for each in wanted)]
                granted, answers = await acquire(keys, [permit, written(wanted), lease, now])
                assert (bool(granted), [tuple(each) for each in answers]) == alone.acquire(
                    permit, wanted, lease, now
                )
            case "back", int(index), int(amount):
                if index < len(permits):
                    permit, wanted = permits[index]
                    back = [each._replace(amount=amount) for each in wanted]
                    keys = [permit, *(each.key for each in wanted)]
                    given_back = await release(keys, [permit, written(back), now])
                    assert bool(given_back) == alone.release(permit, back, now)


def test_a_process_keeps_a_bounded_number_of_buckets() -> None:
    buckets = Buckets(most=3)
    for number in range(10):
        shares = [Share(f"{number}/r", "requests", 1, 1), Share(f"{number}/c", "calls", 1, 1)]
        assert buckets.acquire(str(number), shares, 1_000, 0)[0]
    assert [len(each) for each in (buckets._levels, buckets._places, buckets._permits)] == [3, 3, 3]
    assert not buckets.acquire("again", [Share("9/r", "requests", 1, 1)], 1_000, 0)[0]


# --- granting and refusing ---


async def test_so_many_requests_a_minute_and_the_wait_for_the_next(
    limits: RedisRateLimits, fresh: str
) -> None:
    states = [(await take(limits, fresh, REQUESTS)).states[0] for _ in range(3)]
    assert [each.left for each in states] == [2, 1, 0]
    assert 0 < states[0].reset_seconds <= 20 < states[1].reset_seconds <= 40
    with pytest.raises(RateLimited, match="key/k allows 3 requests a minute") as refused:
        await take(limits, fresh, REQUESTS)
    assert refused.value.limit == "key/k requests"
    assert refused.value.retry_after_seconds is not None
    assert 0 < refused.value.retry_after_seconds <= 20
    # another tenant's limit of the same name is its own
    await take(limits, f"{fresh}-other", REQUESTS)


async def test_all_limits_grant_or_none_does_and_the_longest_wait_is_named(
    limits: RedisRateLimits, fresh: str
) -> None:
    for _ in range(2):
        await take(limits, fresh, CALLS)
    await take(limits, fresh, TOKENS, tokens=900)
    with pytest.raises(RateLimited) as refused:
        await take(limits, fresh, REQUESTS, TOKENS, CALLS, tokens=500)
    # 400 tokens come in 24 s; a place is looked for every second
    assert refused.value.limit == "key/k tokens"
    assert refused.value.retry_after_seconds is not None
    assert 20 < refused.value.retry_after_seconds <= 24
    assert await left(limits, fresh, REQUESTS) == 3
    assert await left(limits, fresh, CALLS) == 0


async def test_a_hundred_at_once_are_granted_exactly_what_there_is(
    limits: RedisRateLimits, redis: RedisLink, fresh: str
) -> None:
    several = [limits, RedisRateLimits(redis), RedisRateLimits(redis)]
    wanted = [RateLimit("key/k", "requests", 30), RateLimit("tenant", "calls", 20)]
    outcomes = await asyncio.gather(
        *(take(several[n % 3], fresh, *wanted) for n in range(100)), return_exceptions=True
    )
    assert sum(isinstance(each, Permit) for each in outcomes) == 20
    assert {type(each) for each in outcomes} == {Permit, RateLimited}
    for each in several:
        await each.close()


async def test_a_place_is_given_back_once_and_tokens_that_were_not_used(
    limits: RedisRateLimits, fresh: str
) -> None:
    permit = await take(limits, fresh, CALLS, TOKENS, tokens=600)
    await take(limits, fresh, CALLS)
    for _ in range(3):
        await limits.release(fresh, permit, tokens_used=100)
    assert await left(limits, fresh, CALLS) == 1
    assert 900 <= await left(limits, fresh, TOKENS) < 910


async def test_tokens_beyond_the_estimate_are_taken_and_paid_back_before_the_next_call(
    limits: RedisRateLimits, fresh: str
) -> None:
    permit = await take(limits, fresh, TOKENS, tokens=600)
    await limits.release(fresh, permit, tokens_used=1_500)
    assert await left(limits, fresh, TOKENS) < 0
    with pytest.raises(RateLimited) as refused:
        await take(limits, fresh, TOKENS, tokens=0)
    assert refused.value.retry_after_seconds is not None
    assert 29 < refused.value.retry_after_seconds <= 30


async def test_a_call_larger_than_its_limit_is_told_so_instead_of_waiting_for_ever(
    limits: RedisRateLimits, fresh: str
) -> None:
    with pytest.raises(LimitExceeded, match=r"1,001 tokens.* allows 1,000 a minute.*max_tokens") as refused:
        await take(limits, fresh, TOKENS, REQUESTS, tokens=1_001)
    assert not refused.value.retryable
    assert await left(limits, fresh, REQUESTS) == 3


async def test_an_upstreams_limit_is_everybodys_and_gives_back_what_the_tenants_granted(
    limits: RedisRateLimits, redis: RedisLink, fresh: str
) -> None:
    upstream = RateLimit(f"upstream/{fresh}", "calls", 1)
    permit = await take(limits, f"{fresh}-one", CALLS, REQUESTS, upstream)
    assert [each.limit for each in permit.states] == [CALLS, REQUESTS, upstream]
    with pytest.raises(RateLimited) as refused:
        await take(limits, f"{fresh}-two", CALLS, REQUESTS, TOKENS, upstream, tokens=500)
    assert refused.value.limit == f"upstream/{fresh} calls"
    for limit in (CALLS, REQUESTS, TOKENS):
        assert await left(limits, f"{fresh}-two", limit) == limit.capacity
    await limits.release(f"{fresh}-one", permit)
    await take(limits, f"{fresh}-two", upstream)
    # keys of one decision have one tag, which a cluster keeps in one place
    assert {key.partition("}")[0] for key in await redis.client.keys(f"*{fresh}-one*")} <= {
        f"rate:{{{fresh}-one"
    }


async def test_no_limits_ask_nobody(fresh: str) -> None:
    nowhere = RedisLink.to("redis://127.0.0.1:1/0", max_connections=1, timeout_seconds=1)
    limits = RedisRateLimits(nowhere)
    permit = await take(limits, fresh)
    await limits.release(fresh, permit)
    assert not nowhere.degraded
    await nowhere.close()


# --- who goes away ---


async def test_a_caller_that_leaves_while_it_is_granted_leaves_no_place_taken(
    limits: RedisRateLimits, fresh: str
) -> None:
    """X3: no phantom 429, at whichever moment it leaves."""
    one = RateLimit("key/k", "calls", 1)
    many = RateLimit("key/k", "requests", 1_000)
    for turns in range(8):
        taking = asyncio.create_task(take(limits, fresh, one, many))
        for _ in range(turns):
            await asyncio.sleep(0.0002)
        taking.cancel()
        (outcome,) = await asyncio.gather(taking, return_exceptions=True)
        if isinstance(outcome, Permit):
            await limits.release(fresh, outcome)

        async def nothing_is_taken() -> bool:
            return not limits._background and await left(limits, fresh, one) == 1

        await until(nothing_is_taken)


_HOLDER = """
import asyncio, sys
from db.redis.connection import RedisLink
from db.redis.limits import RedisRateLimits
from domain.gateway import RateLimit

async def main(url, tenant):
    limits = RedisRateLimits(RedisLink.to(url, max_connections=2, timeout_seconds=5))
    for _ in range(2):
        await limits.acquire(tenant, [RateLimit("key/k", "calls", 2)], tokens=0, lease_seconds=2.5)
    print("held", flush=True)
    await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_places_of_a_killed_process_are_free_again_at_the_end_of_their_leases(
    limits: RedisRateLimits, addresses: Addresses, fresh: str
) -> None:
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _HOLDER, addresses.redis_url, fresh, cwd=ASSAY, stdout=asyncio.subprocess.PIPE
    )
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"held\n"
    holder.send_signal(signal.SIGKILL)
    await holder.wait()
    told: list[float] = []
    while (waits := await _waits(limits, fresh)) is not None:
        told.append(waits)
        await asyncio.sleep(waits + 0.01)
    # a second at most, and in the end one after which there is a place
    assert 1 <= len(told) <= 3
    assert 0 < min(told) <= max(told) <= 1


async def _waits(limits: RedisRateLimits, tenant: str) -> float | None:
    """The wait that a refusal tells; None where a place was taken."""
    try:
        await take(limits, tenant, CALLS)
    except RateLimited as refused:
        return refused.retry_after_seconds
    return None


# --- how long a place is kept ---

ONE = RateLimit("key/k", "calls", 1)


async def _is_taken(limits: RedisRateLimits, tenant: str) -> bool:
    return await left(limits, tenant, ONE) == 0


async def test_a_call_keeps_its_place_however_long_it_lasts_and_tokens_are_given_back_after_it(
    limits: RedisRateLimits, redis: RedisLink, fresh: str
) -> None:
    """One task renews what all calls of the process have, the upstreams' places too."""
    upstream = RateLimit(f"upstream/{fresh}", "calls", 1)
    permit = await take(limits, fresh, ONE, TOKENS, upstream, tokens=600, lease_seconds=1.2)
    # a longer lease does not make the others' renewal late
    await take(limits, f"{fresh}-other", CALLS, lease_seconds=60)
    other_process = RedisRateLimits(redis)
    await asyncio.sleep(1.5)
    for limit in (ONE, upstream):
        with pytest.raises(RateLimited):
            await take(other_process, fresh, limit)
    await limits.release(fresh, permit, tokens_used=0)
    assert await left(limits, fresh, TOKENS) == 1_000
    permit = await take(other_process, fresh, ONE, upstream)
    await other_process.release(fresh, permit)
    await other_process.close()


async def test_a_renewal_brings_back_no_place_that_was_given_back_meanwhile(
    limits: RedisRateLimits, fresh: str
) -> None:
    for turns in range(8):
        permits = [await take(limits, f"{fresh}-{n}", ONE, lease_seconds=30) for n in range(20)]
        limits._renew_now.set()
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        for n, permit in enumerate(permits):
            await limits.release(f"{fresh}-{n}", permit)
        assert [await left(limits, f"{fresh}-{n}", ONE) for n in range(20)] == [1] * 20
    assert not limits._open


async def test_the_task_that_renews_ends_with_what_it_renews_or_with_the_limits(
    limits: RedisRateLimits, fresh: str
) -> None:
    permit = await take(limits, fresh, ONE, lease_seconds=0.03)
    await limits.release(fresh, permit)

    async def ended() -> bool:
        return limits._renewing is not None and limits._renewing.done()

    await until(ended)
    await take(limits, fresh, ONE, lease_seconds=0.3)
    assert not await ended()
    await limits.close()
    assert await ended()
    await asyncio.sleep(0.31)
    # nobody renews it any more
    assert not await limits._link.client.exists(limit_key(fresh, ONE))


async def test_what_an_emptied_redis_forgot_is_there_again_with_the_next_renewal(
    own_link: RedisLink, apart: RedisRateLimits, fresh: str
) -> None:
    permit = await take(apart, fresh, ONE, lease_seconds=3)
    await own_link.client.flushall()
    await own_link.client.script_flush()
    assert await left(apart, fresh, ONE) == 1
    await until(lambda: _is_taken(apart, fresh))
    await apart.release(fresh, permit)
    assert await left(apart, fresh, ONE) == 1


async def test_the_end_of_a_call_that_was_forgotten_brings_back_the_others_at_once(
    own_link: RedisLink, apart: RedisRateLimits, fresh: str
) -> None:
    ends = await take(apart, f"{fresh}-ends", ONE)
    await take(apart, fresh, ONE)
    await own_link.client.flushall()
    # its renewal would come after 20 s
    await apart.release(f"{fresh}-ends", ends)
    await until(lambda: _is_taken(apart, fresh), within_seconds=15)


async def test_a_restarted_redis_knows_again_what_is_under_way_though_nobody_asks(
    valkey: ValkeyServer, own_link: RedisLink, apart: RedisRateLimits, fresh: str
) -> None:
    await take(apart, fresh, ONE, lease_seconds=0.3)
    await valkey.stop()
    await valkey.start()

    async def known_again() -> bool:
        try:
            return await _is_taken(apart, fresh)
        except ConnectionError:  # the server is not there yet
            return False

    await until(known_again)


async def test_a_place_taken_alone_is_kept_too(
    apart: RedisRateLimits, valkey: ValkeyServer, fresh: str
) -> None:
    await valkey.stop()
    permit = await take(apart, fresh, ONE, lease_seconds=1.2)
    assert permit.id.startswith("alone/")
    await asyncio.sleep(1.5)
    with pytest.raises(RateLimited):
        await take(apart, fresh, ONE)
    await valkey.start()


# --- who waits for a place ---


async def test_a_refusal_tells_how_all_limits_stand(limits: RedisRateLimits, fresh: str) -> None:
    await take(limits, fresh, ONE, REQUESTS)
    with pytest.raises(RateLimited) as refused:
        await take(limits, fresh, ONE, REQUESTS)
    assert [(each.limit, each.left) for each in refused.value.states] == [(ONE, 0), (REQUESTS, 2)]


async def test_each_place_given_back_wakes_one_of_those_who_wait_the_first_one_first(
    limits: RedisRateLimits, fresh: str
) -> None:
    permits = [await take(limits, fresh, CALLS) for _ in range(2)]
    woken: list[int] = []

    async def wait(number: int) -> None:
        await limits.freed(fresh, [CALLS], within_seconds=600)
        woken.append(number)

    waiting = [asyncio.create_task(wait(number)) for number in range(3)]
    await asyncio.sleep(0)
    await limits.release(fresh, permits[0])
    await waiting[0]
    assert woken == [0]
    # who is woken and goes away leaves the place to the next one
    await limits._give_back(fresh, permits[1], None)
    waiting[1].cancel()
    await asyncio.wait_for(waiting[2], 60)
    assert woken == [0, 2]
    assert not limits._lines._lines


async def test_a_place_given_back_between_a_refusal_and_its_wait_is_not_missed(
    limits: RedisRateLimits, fresh: str
) -> None:
    permit = await take(limits, fresh, ONE)
    with pytest.raises(RateLimited):
        await take(limits, fresh, ONE)
    await limits.release(fresh, permit)
    await asyncio.wait_for(limits.freed(fresh, [ONE], within_seconds=600), 60)


async def test_who_finds_more_room_than_it_takes_wakes_the_next_one(
    limits: RedisRateLimits, redis: RedisLink, fresh: str
) -> None:
    """Places of other processes wake nobody here: one who tries again finds them for all."""
    other_process = RedisRateLimits(redis)
    permits = [await take(other_process, fresh, CALLS) for _ in range(2)]
    waiting = asyncio.create_task(limits.freed(fresh, [CALLS], within_seconds=600))
    await asyncio.sleep(0)
    for permit in permits:
        await other_process.release(fresh, permit)
    assert not waiting.done()
    await take(limits, fresh, CALLS)
    await asyncio.wait_for(waiting, 60)
    await other_process.close()


async def test_nobody_waits_longer_than_it_said(limits: RedisRateLimits, fresh: str) -> None:
    await asyncio.wait_for(limits.freed(fresh, [ONE], within_seconds=0.01), 60)
    assert not limits._lines._lines


# --- without Redis ---


@pytest.fixture
async def apart(own_link: RedisLink) -> AsyncIterator[RedisRateLimits]:
    limits = RedisRateLimits(own_link, processes=2)
    yield limits
    await limits.close()
    assert not limits._background


async def test_without_redis_each_process_has_its_share_and_goes_back_by_itself(
    valkey: ValkeyServer, own_link: RedisLink, apart: RedisRateLimits, fresh: str
) -> None:
    four, tokens = RateLimit("key/k", "requests", 4), RateLimit("key/k", "tokens", 1_000)
    kept = await take(apart, fresh, CALLS)
    await valkey.stop()
    permits = [await take(apart, fresh, four, tokens, CALLS, tokens=100) for _ in range(1)]
    with pytest.raises(RateLimited):
        # half of two places is one
        await take(apart, fresh, four, tokens, CALLS, tokens=100)
    await apart.release(fresh, permits[0], tokens_used=0)
    # what is larger than the share takes all of it
    permits.append(await take(apart, fresh, four, tokens, CALLS, tokens=900))
    with pytest.raises(RateLimited) as refused:
        await take(apart, fresh, four)
    assert refused.value.limit == "key/k requests"
    # a place that was taken there is given back when it can be
    await apart.release(fresh, kept)
    await valkey.start()

    async def shared_again() -> bool:
        permit = await take(apart, fresh, RateLimit("key/probe", "requests", 100_000))
        return not permit.id.startswith("alone/")

    await until(shared_again)

    async def all_free() -> bool:
        return await left(apart, fresh, CALLS) == 2

    await until(all_free)
    # a permit from the time alone is given back to the process that granted it
    await apart.release(fresh, permits[1], tokens_used=0)
    assert await left(apart, fresh, tokens) == 1_000


async def test_a_place_taken_while_the_answer_got_lost_is_given_back(
    valkey: ValkeyServer, own_link: RedisLink, apart: RedisRateLimits, fresh: str
) -> None:
    await own_link.ping()
    assert valkey.child is not None
    os.kill(valkey.child.pid, signal.SIGSTOP)
    try:
        # the script waits in the socket, and runs when the server wakes
        permit = await take(apart, fresh, CALLS)
    finally:
        os.kill(valkey.child.pid, signal.SIGCONT)
    assert permit.id.startswith("alone/")

    async def shared_again() -> bool:
        probe = await take(apart, fresh, RateLimit("key/probe", "requests", 100_000))
        return not probe.id.startswith("alone/") and not apart._owed and not apart._background

    await until(shared_again)
    assert await left(apart, fresh, CALLS) == 2


async def test_a_full_redis_is_one_that_is_gone(
    own_link: RedisLink, apart: RedisRateLimits, fresh: str
) -> None:
    await own_link.client.config_set("maxmemory-policy", "noeviction")
    await own_link.client.config_set("maxmemory", "1")
    permit = await take(apart, fresh, REQUESTS)
    with pytest.raises(RateLimited):
        await take(apart, fresh, REQUESTS)
    await apart.release(fresh, permit)
    await own_link.client.config_set("maxmemory", "0")
    assert (await take(apart, fresh, REQUESTS)).states[0].left == 2
