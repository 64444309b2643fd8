"""Several models behind one name: refused, cut off, cooling or full, the call is answered and paid once."""

import asyncio

import pytest

from db.redis.affinity import RedisAffinities
from db.redis.limits import RedisRateLimits
from domain.completion import IMPATIENT, CompletionReply, CompletionRequest, Patience
from domain.errors import ModelRefused, ModelUnavailable, UnknownModel, UnpricedModel
from domain.gateway import RateLimit
from gateway.routing import UpstreamRoom
from runtime.resources import Resources
from tests.gateway.lane import (
    COST,
    Choices,
    Lane,
    StreamingUpstream,
    at_once,
    opened_lane,
    raising,
    raising_once,
)

ROUTES = {"small": ("one:model", "two:model", "three:model"), "pair": ("one:model", "two:model")}
PATIENT = Patience(wait_on_rate_limit=True, max_wait_timeout_s=5, retry_budget_s=5)
AWAY = ModelUnavailable("Connection refused.")
CUT = ModelUnavailable("Cut off after sending.", in_doubt=True)


@pytest.fixture
async def lane(session_resources: Resources) -> Lane:
    """A lane on which several models have prices; the second one costs three times the first one."""
    return await opened_lane(session_resources)


@pytest.mark.parametrize(
    "error",
    [AWAY, UnknownModel("No such model."), ModelRefused("No such parameter.")],
    ids=lambda each: each.code,
)
async def test_what_refuses_costs_nothing_and_the_next_one_answers_under_the_same_hold(
    lane: Lane, error: Exception
) -> None:
    lane.upstream.acts["one:model"] = raising(error)
    reply = await lane.door(routes=ROUTES).complete(lane.request(model="small"))
    assert lane.upstream.models == ["one:model", "two:model"]
    assert (reply.model, reply.cost_nanodollars) == ("two:model", 3 * COST)
    assert await lane.states() == ["committed"]
    (fact,) = await lane.facts("retried")
    assert (fact["model"], fact["outcome"], fact["next"]) == ("one:model", "next", "two:model")


async def test_the_hold_is_the_worst_case_and_the_commit_states_who_answered(lane: Lane) -> None:
    await lane.door(routes=ROUTES).complete(lane.request(model="small"))
    hold, commit = await lane.events()
    assert (hold["event_type"], hold["provider"]) == ("precheck_hold", "one")
    assert (commit["event_type"], commit["provider"], commit["model"]) == ("commit", "one", "model")
    dearest = await lane.door().complete(lane.request(model="two:model", call_number=2))
    assert dearest.cost_nanodollars == 3 * COST
    of_dearest = next(each for each in await lane.events() if each["provider"] == "two")
    assert hold["cost_estimated_nanodollars"] == of_dearest["cost_estimated_nanodollars"]


async def test_a_candidate_in_doubt_stays_charged_and_the_rest_are_asked_under_a_new_hold(lane: Lane) -> None:
    lane.upstream.acts["one:model"] = raising(CUT)
    reply = await lane.door(routes=ROUTES).complete(lane.request(model="small"))
    assert reply.model == "two:model"
    assert await lane.states() == ["in_doubt", "committed"]
    assert lane.upstream.models == ["one:model", "two:model"]
    assert [fact["reason"] for fact in await lane.facts("retried")] == ["in_doubt"]


async def test_where_all_refuse_the_caller_hears_of_the_one_that_may_pass(lane: Lane) -> None:
    lane.upstream.acts = {"one:model": raising(AWAY), "two:model": raising(UnknownModel("No such model."))}
    with pytest.raises(ModelUnavailable, match="Connection refused"):
        await lane.door(routes=ROUTES).complete(lane.request(model="pair"))
    assert await lane.states() == ["cancelled"]


async def test_a_model_that_failed_is_left_alone_for_a_while(lane: Lane) -> None:
    lane.upstream.acts["one:model"] = raising(AWAY)
    door = lane.door(routes=ROUTES)
    for number in (1, 2):
        await door.complete(lane.request(model="pair", call_number=number))
    assert lane.upstream.models == ["one:model", "two:model", "two:model"]


async def test_while_every_model_cools_down_the_caller_is_told_when_to_come_again(lane: Lane) -> None:
    lane.upstream.act = raising(ModelUnavailable("Too many.", retry_after_seconds=30))
    door = lane.door(routes=ROUTES)
    for model in ("pair", "one:model"):
        with pytest.raises(ModelUnavailable) as caught:
            await door.complete(lane.chat(model=model, patience=IMPATIENT), caller=lane.caller)
        assert caught.value.retry_after_seconds == pytest.approx(30, abs=2)
    assert lane.upstream.models == ["one:model", "two:model"], "the second call asked nobody"


async def test_a_lone_model_without_a_word_about_its_return_is_asked_again_at_once(lane: Lane) -> None:
    lane.upstream.act = raising_once(AWAY)
    door = lane.door()
    with pytest.raises(ModelUnavailable):
        await door.complete(lane.request())
    assert (await door.complete(lane.request())).model == "scripted"


async def test_a_patient_call_waits_as_long_as_the_upstream_says_and_asks_again(lane: Lane) -> None:
    lane.upstream.act = raising_once(ModelUnavailable("Too many.", retry_after_seconds=0.2))
    reply = await lane.door().complete(lane.request(patience=PATIENT))
    assert reply.cost_nanodollars == COST
    assert await lane.states() == ["cancelled", "committed"], "no money is held while it waits"
    (fact,) = await lane.facts("retried")
    assert fact["outcome"] == "answered"
    assert fact["waited_ms"] >= 200


async def test_a_wait_beyond_the_deadline_is_refused_at_once(lane: Lane) -> None:
    lane.upstream.act = raising(ModelUnavailable("Too many.", retry_after_seconds=20))
    with pytest.raises(ModelUnavailable):
        await asyncio.wait_for(lane.door().complete(lane.request(patience=PATIENT)), 4)
    (fact,) = await lane.facts("retried")
    assert (fact["outcome"], fact["waited_ms"]) == ("refused", 0)


async def test_a_model_without_a_price_is_passed_over_and_never_free(lane: Lane) -> None:
    routes = {"mixed": ("nobody:unheard-of", "one:model"), "none": ("nobody:unheard-of",)}
    assert (await lane.door(routes=routes).complete(lane.request(model="mixed"))).model == "one:model"
    assert (await lane.facts("unpriced"))[0]["model"] == "nobody:unheard-of"
    with pytest.raises(UnpricedModel):
        await lane.door(routes=routes).complete(lane.request(model="none", call_number=2))


async def test_a_full_upstream_is_passed_over_or_waited_for(lane: Lane) -> None:
    limits = RedisRateLimits(lane.resources.redis)
    room = UpstreamRoom(limits, {"one": [RateLimit(f"upstream/{lane.payer.tenant_id}", "calls", 1)]})
    released = asyncio.Event()

    async def slow(request: CompletionRequest) -> CompletionReply:
        await released.wait()
        return await at_once(request)

    lane.upstream.acts["one:model"] = slow
    door = lane.door(routes=ROUTES, room=room)
    first = asyncio.create_task(door.complete(lane.request(model="one:model", patience=PATIENT)))
    while not lane.upstream.models:
        await asyncio.sleep(0.01)
    beside = await door.complete(lane.request(model="pair", call_number=2))
    assert beside.model == "two:model"
    with pytest.raises(ModelUnavailable, match="takes no more calls"):
        await door.complete(lane.request(model="one:model", call_number=3, patience=IMPATIENT))
    waiting = asyncio.create_task(
        door.complete(lane.request(model="one:model", call_number=3, patience=PATIENT))
    )
    released.set()
    assert (await first).model == (await waiting).model == "one:model"
    await door.close()


async def test_a_session_stays_with_the_model_that_answered_it(lane: Lane) -> None:
    lane.upstream.acts["one:model"] = raising_once(AWAY)
    door, other_door = lane.door(routes=ROUTES), lane.door(routes=ROUTES)
    for each in (door, other_door):
        await each.complete(lane.chat(model="pair", session_id="s"), caller=lane.caller)
    assert lane.upstream.models == ["one:model", "two:model", "two:model"]
    affinity = await RedisAffinities(lane.resources.redis).read(lane.payer.tenant_id, "s")
    assert affinity is not None
    assert affinity.model == "two:model"


async def test_once_a_part_was_told_nobody_else_goes_on_with_it(session_resources: Resources) -> None:
    upstream = StreamingUpstream(breaks_off=AWAY)
    lane = await opened_lane(session_resources, upstream)
    told: list[object] = []

    async def hear(choices: Choices) -> None:
        told.append(choices)

    with pytest.raises(ModelUnavailable) as caught:
        await lane.door(routes=ROUTES).complete(lane.chat(model="pair"), caller=lane.caller, on_chunk=hear)
    assert caught.value.in_doubt, "what was told in part was worked on"
    assert upstream.models == ["one:model"]
    assert len(told) == 1
    assert await lane.outside_states() == ["in_doubt"]


async def test_a_listener_that_fails_or_leaves_disturbs_nothing(session_resources: Resources) -> None:
    lane = await opened_lane(session_resources, StreamingUpstream())

    async def fail(_: Choices) -> None:
        raise ConnectionResetError

    reply = await lane.door().complete(lane.chat(), caller=lane.caller, on_chunk=fail)
    assert reply.text == "Light is energy."
    assert await lane.outside_states() == ["committed"]
    commit = next(each for each in await lane.events() if each["event_type"] == "commit")
    assert commit["ttft_ms"] is not None
