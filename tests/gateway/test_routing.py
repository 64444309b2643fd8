"""Routing: in order, around what cools down or is full, and back to whom a session prefers."""

import asyncio
from dataclasses import replace
from uuid import uuid4

import pytest
from prometheus_client import CollectorRegistry

from db.redis.limits import RedisRateLimits
from domain.errors import ModelUnavailable
from domain.gateway import Affinity, RateLimit
from gateway.context import Called, Routed
from gateway.figures import GatewayFigures
from gateway.routing import (
    COOLDOWNS_KEPT,
    FIRST_COOLDOWN_SECONDS,
    LONGEST_COOLDOWN_SECONDS,
    Cooldowns,
    RouteStep,
    UpstreamRoom,
)
from gateway.waiting import Later, UpstreamFull
from runtime.gateway import upstream_limits
from runtime.resources import Resources
from runtime.settings import ModelSettings
from tests.gateway.lane import at_once
from tests.gateway.paper import PaperAffinities, a_chat, a_context

ROUTES = {"small": ("one:model", "two:model", "three:model")}


class Held:
    """The monotonic clock, held."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Held:
    return Held()


@pytest.fixture
def cooldowns(clock: Held) -> Cooldowns:
    return Cooldowns(clock)


def step(cooldowns: Cooldowns, room: UpstreamRoom | None = None, **options: object) -> RouteStep:
    """The step over the routes."""
    return RouteStep(ROUTES, cooldowns, room or UpstreamRoom(), timeout_of=lambda _: 1.0, **options)  # type: ignore[arg-type]  # by name


def test_a_failure_cools_longer_each_time_and_an_answer_ends_it(clock: Held, cooldowns: Cooldowns) -> None:
    waits = []
    for _ in range(10):
        cooldowns.fail("one:model")
        waits.append(cooldowns.seconds_left("one:model"))
    assert waits[:3] == [FIRST_COOLDOWN_SECONDS, 2 * FIRST_COOLDOWN_SECONDS, 4 * FIRST_COOLDOWN_SECONDS]
    assert waits[-1] == LONGEST_COOLDOWN_SECONDS
    cooldowns.answered("one:model")
    assert cooldowns.seconds_left("one:model") == 0
    cooldowns.fail("one:model", 7.5)
    clock.now += 7
    assert cooldowns.seconds_left("one:model") == 0.5


def test_the_only_model_is_left_alone_only_where_it_says_so_itself(cooldowns: Cooldowns) -> None:
    cooldowns.fail("one:model")
    assert cooldowns.seconds_left("one:model", alone=True) == 0
    cooldowns.fail("one:model", 3.0)
    assert cooldowns.seconds_left("one:model", alone=True) == 3


def test_so_many_failures_are_remembered_and_no_more(cooldowns: Cooldowns) -> None:
    for number in range(COOLDOWNS_KEPT + 1):
        cooldowns.fail(f"campus:{number}")
    assert cooldowns.seconds_left("campus:0") == 0
    assert cooldowns.seconds_left(f"campus:{COOLDOWNS_KEPT}") > 0


async def test_a_name_without_a_route_is_a_route_of_one(cooldowns: Cooldowns) -> None:
    assert (await step(cooldowns).route(a_context())).candidates == ("one:model",)


async def test_candidates_keep_their_order_without_those_that_cool_or_have_failed_this_call(
    cooldowns: Cooldowns,
) -> None:
    cooldowns.fail("one:model", 5)
    route = step(cooldowns)
    assert (await route.route(a_context(a_chat(model="small")))).candidates == ("two:model", "three:model")
    again = a_context(a_chat(model="small"), passed_over=frozenset({"two:model"}))
    assert (await route.route(again)).candidates == ("three:model",)


async def test_the_first_return_of_a_model_is_what_the_caller_waits_for(cooldowns: Cooldowns) -> None:
    for seconds, model in enumerate(ROUTES["small"], 5):
        cooldowns.fail(model, seconds)
    with pytest.raises(Later) as caught:
        await step(cooldowns).route(a_context(a_chat(model="small")))
    assert caught.value.seconds == 5
    condition = caught.value.condition
    assert isinstance(condition, ModelUnavailable)
    assert condition.retry_after_seconds == 5


async def test_a_session_is_led_to_whom_it_prefers_unless_that_one_cools(cooldowns: Cooldowns) -> None:
    affinities = PaperAffinities({("tenant", "s"): Affinity("two:model", 4)})
    figures = GatewayFigures(CollectorRegistry())
    route = step(cooldowns, affinities=affinities, figures=figures)
    context = a_context(a_chat(model="small", session_id="s"))
    assert (await route.route(context)).candidates == ("two:model", "one:model", "three:model")
    cooldowns.fail("two:model", 5)
    routed = await route.route(context)
    assert routed.candidates == ("one:model", "three:model")
    assert figures.registry.get_sample_value("routing_affinity_stale_count_total") == 1
    answered = Called(await at_once(context.request), "one:model")
    await route.prefer(replace(context, routed=routed, called=answered))
    assert affinities.known["tenant", "s"] == Affinity("one:model", 5)
    assert figures.registry.get_sample_value("routing_affinity_hit_rate") == 0


async def test_without_a_session_nothing_is_preferred(cooldowns: Cooldowns) -> None:
    affinities = PaperAffinities()
    context = a_context(routed=Routed(("one:model",)))
    called = Called(await at_once(context.request), "one:model")
    await step(cooldowns, affinities=affinities).prefer(replace(context, called=called))
    assert not affinities.known


def test_limits_of_upstreams_come_from_both_settings() -> None:
    settings = ModelSettings.model_validate(
        {
            "compatible": {"campus": {"url": "http://127.0.0.1:1/v1", "max_concurrent": 4}},
            "upstreams": {"openai": {"requests_per_minute": 500}},
        }
    )
    assert upstream_limits(settings) == {
        "campus": (RateLimit("upstream/campus", "calls", 4),),
        "openai": (RateLimit("upstream/openai", "requests", 500),),
    }


async def test_a_full_upstream_comes_last_and_where_all_are_full_the_call_waits(
    cooldowns: Cooldowns, session_resources: Resources
) -> None:
    mark, limits = uuid4().hex, RedisRateLimits(session_resources.redis)
    room = UpstreamRoom(
        limits,
        {name: [RateLimit(f"upstream/{name}-{mark}", "calls", 1)] for name in ("one", "two", "three")},
    )
    route, context = step(cooldowns, room), a_context(a_chat(model="small"))
    routes = [await route.route(context) for _ in range(3)]
    assert [each.candidates[0] for each in routes] == ["one:model", "two:model", "three:model"]
    with pytest.raises(UpstreamFull, match="upstream_full") as caught:
        await route.route(context)
    assert caught.value.condition.retry_after_seconds == 1
    # whichever upstream is free first ends the wait
    waiting = asyncio.create_task(caught.value.freed(600))
    await asyncio.sleep(0)
    room.give_back(routes[2].place)
    await asyncio.wait_for(waiting, 60)
    for each in routes[1:] * 2:
        room.give_back(each.place)
    await room.close()
    assert (await route.route(context)).candidates == ("two:model", "three:model", "one:model")
    await room.close()
    await limits.close()


async def test_a_rate_of_an_upstream_is_waited_for_by_the_clock(
    cooldowns: Cooldowns, session_resources: Resources
) -> None:
    limits = RedisRateLimits(session_resources.redis)
    room = UpstreamRoom(limits, {"one": [RateLimit(f"upstream/{uuid4().hex}", "requests", 2)]})
    route = step(cooldowns, room)
    for _ in range(2):
        await route.route(a_context())
    with pytest.raises(Later, match="upstream_full") as caught:
        await route.route(a_context())
    assert not isinstance(caught.value, UpstreamFull)
    assert 25 < caught.value.seconds <= 30
    await limits.close()
