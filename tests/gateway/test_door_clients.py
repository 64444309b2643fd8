"""Calls of outside callers outlive their clients, are bounded and known by their ids, and their keys pay."""

import asyncio
from dataclasses import replace

import pytest

from domain.completion import IMPATIENT, CompletionReply, CompletionRequest, Usage
from domain.errors import (
    BudgetExhausted,
    CallUnderway,
    Forbidden,
    IdempotencyMismatch,
    ModelUnavailable,
    Unavailable,
)
from domain.ledger import Account, Scope
from domain.money import Money
from runtime.resources import Resources
from tests.gateway.lane import COST, Choices, Lane, StreamingUpstream, Upstream, at_once, opened_lane, raising

HOLD = "precheck_hold"


class Held(Upstream):
    """An upstream whose replies are held until they are let go."""

    def __init__(self) -> None:
        super().__init__(self.wait)
        self.asked, self.released = asyncio.Event(), asyncio.Event()

    async def wait(self, request: CompletionRequest) -> CompletionReply:
        self.asked.set()
        await self.released.wait()
        return await at_once(request)


@pytest.fixture
async def lane(session_resources: Resources) -> Lane:
    """A lane whose upstream replies at once."""
    return await opened_lane(session_resources)


@pytest.fixture
async def held_lane(session_resources: Resources) -> Lane:
    """A lane whose upstream holds its replies."""
    return await opened_lane(session_resources, Held())


def _held(lane: Lane) -> Held:
    assert isinstance(lane.upstream, Held)
    return lane.upstream


async def test_a_call_goes_on_when_its_client_has_gone_and_is_replayed_to_it(held_lane: Lane) -> None:
    upstream, door = _held(held_lane), held_lane.door()
    calling = asyncio.create_task(door.complete(held_lane.chat("mine"), caller=held_lane.caller))
    await upstream.asked.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert await held_lane.outside_states() == ["dispatched"]
    again = asyncio.create_task(door.complete(held_lane.chat("mine"), caller=held_lane.caller))
    upstream.released.set()
    assert (await again).cost_nanodollars == COST
    assert upstream.calls.total() == 1
    assert await held_lane.outside_states() == ["committed"]
    assert await held_lane.spent_outside() == COST


async def test_clients_that_all_leave_leave_no_hold_open(held_lane: Lane) -> None:
    upstream, door = _held(held_lane), held_lane.door()
    calls = [asyncio.create_task(door.complete(held_lane.chat(), caller=held_lane.caller)) for _ in range(30)]
    await upstream.asked.wait()
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    upstream.released.set()
    await door.close()
    assert upstream.calls.total() == 30
    assert await held_lane.outside_states() == ["committed"] * 30
    assert await held_lane.spent_outside() == 30 * COST


async def test_what_is_not_done_when_the_door_closes_is_a_doubt(held_lane: Lane) -> None:
    upstream, door = _held(held_lane), held_lane.door(drain_seconds=0.1)
    call = asyncio.create_task(door.complete(held_lane.chat(), caller=held_lane.caller))
    await upstream.asked.wait()
    await door.close()
    await asyncio.wait([call])
    assert await held_lane.outside_states() == ["in_doubt"]
    with pytest.raises(Unavailable, match="shutting down"):
        await door.complete(held_lane.chat(), caller=held_lane.caller)


async def test_so_many_calls_run_at_once_and_no_more(held_lane: Lane) -> None:
    upstream, door = _held(held_lane), held_lane.door(max_calls=1)
    call = asyncio.create_task(door.complete(held_lane.chat(), caller=held_lane.caller))
    await upstream.asked.wait()
    with pytest.raises(Unavailable, match="ASSAY_MODELS__MAX_CALLS"):
        await door.complete(held_lane.chat(), caller=held_lane.caller)
    upstream.released.set()
    await call
    assert door.under_way == 0
    await door.complete(held_lane.chat(), caller=held_lane.caller)


async def test_a_call_under_way_is_refused_or_waited_for(held_lane: Lane) -> None:
    upstream, door = _held(held_lane), held_lane.door()
    first = asyncio.create_task(door.complete(held_lane.chat("mine"), caller=held_lane.caller))
    await upstream.asked.wait()
    with pytest.raises(CallUnderway):
        await door.complete(held_lane.chat("mine", refuse_underway=True), caller=held_lane.caller)
    upstream.released.set()
    assert await door.complete(held_lane.chat("mine"), caller=held_lane.caller) == await first


async def test_a_reply_is_found_as_soon_as_it_is_there(session_resources: Resources) -> None:
    lane = await opened_lane(session_resources, Held())
    lane = replace(lane, timeout_seconds=60)
    upstream = _held(lane)
    looked = asyncio.Event()

    async def look(_: object) -> None:
        # the last moment for the reply is far away, and nobody waits for it
        looked.set()
        await asyncio.sleep(0.01)

    first = asyncio.create_task(lane.door().complete(lane.request()))
    await upstream.asked.wait()
    second = asyncio.create_task(lane.door(wait_until=look).complete(lane.request()))
    await looked.wait()
    upstream.released.set()
    assert await first == await second
    assert upstream.calls.total() == 1


async def test_the_same_id_with_another_body_is_refused(lane: Lane) -> None:
    door = lane.door()
    await door.complete(lane.chat("mine", refuse_other=True), caller=lane.caller)
    with pytest.raises(IdempotencyMismatch):
        await door.complete(lane.chat("mine", refuse_other=True, max_tokens=7), caller=lane.caller)
    assert lane.upstream.calls.total() == 1


async def test_a_reply_that_was_paid_for_is_there_although_its_upstream_is_away(lane: Lane) -> None:
    door = lane.door()
    named = lane.chat("mine", refuse_other=True, patience=IMPATIENT)
    first = await door.complete(named, caller=lane.caller)
    lane.upstream.act = raising(ModelUnavailable("Too many.", retry_after_seconds=60))
    for _ in range(2):
        with pytest.raises(ModelUnavailable):
            await door.complete(lane.chat(refuse_other=True, patience=IMPATIENT), caller=lane.caller)
    assert await door.complete(named, caller=lane.caller) == first
    assert "held" not in await lane.outside_states()


async def test_a_key_may_use_the_models_of_its_patterns_alone(lane: Lane) -> None:
    caller = replace(lane.caller, models=("one:*", "script*"))
    await lane.door().complete(lane.chat(), caller=caller)
    with pytest.raises(Forbidden, match="'two:model'; it may use one:"):
        await lane.door().complete(lane.chat(model="two:model"), caller=caller)


async def test_the_key_pays_and_its_limit_refuses_at_once_who_would_not_wait(lane: Lane) -> None:
    account = Account(lane.payer.tenant_id, Scope.API_KEY, lane.payer.api_key_id)
    await lane.resources.ledger.books.set_limit(account, Money(1_000))
    with pytest.raises(BudgetExhausted) as caught:
        await lane.door().complete(lane.chat(), caller=lane.caller)
    assert caught.value.scope == "api_key"
    assert not lane.upstream.calls


async def test_several_replies_at_once_are_held_for_all_of_them(lane: Lane) -> None:
    one = lane.chat()
    assert one.chat is not None
    five = replace(lane.chat(), chat=replace(one.chat, parameters={"n": 5}))
    await lane.door().complete(one, caller=lane.caller)
    await lane.door().complete(five, caller=lane.caller)
    held = [each["cost_estimated_nanodollars"] for each in await lane.events() if each["event_type"] == HOLD]
    assert max(held) - min(held) >= 4 * one.max_tokens * 2_000


async def test_a_reply_without_usage_is_never_free(lane: Lane) -> None:
    async def uncounted(request: CompletionRequest) -> CompletionReply:
        return CompletionReply("Light is energy.", Usage(0, 0), request.model)

    lane.upstream.act = uncounted
    reply = await lane.door().complete(lane.chat(), caller=lane.caller)
    assert reply.usage.tokens_in > 0
    assert reply.usage.tokens_out > 0
    assert reply.cost_nanodollars > 0
    assert (await lane.facts("estimated"))[0]["model"]


async def test_chunks_are_told_while_the_reply_is_written_and_a_replay_tells_none(
    session_resources: Resources,
) -> None:
    lane = await opened_lane(session_resources, StreamingUpstream())
    told: list[str] = []

    async def hear(choices: Choices) -> None:
        told.append(choices[0]["delta"]["content"])

    reply = await lane.door().complete(lane.chat("mine"), caller=lane.caller, on_chunk=hear)
    assert told == ["Light", " is", " energy."]
    assert reply.text == "".join(told)
    again = await lane.door().complete(lane.chat("mine"), caller=lane.caller, on_chunk=hear)
    assert again == reply
    assert len(told) == 3


async def test_a_client_that_leaves_in_the_middle_of_a_stream_holds_nothing_up(
    session_resources: Resources,
) -> None:
    lane = await opened_lane(session_resources, StreamingUpstream())
    stuck, door = asyncio.Event(), lane.door()

    async def hear(_: Choices) -> None:
        stuck.set()
        await asyncio.Event().wait()

    call = asyncio.create_task(door.complete(lane.chat(), caller=lane.caller, on_chunk=hear))
    await stuck.wait()
    call.cancel()
    await asyncio.wait([call])
    await door.close()
    assert await lane.outside_states() == ["committed"]


async def test_a_slow_reader_does_not_use_up_the_models_time(session_resources: Resources) -> None:
    lane = replace(await opened_lane(session_resources, StreamingUpstream()), timeout_seconds=0.3)

    async def hear(_: Choices) -> None:
        await asyncio.sleep(0.2)

    reply = await lane.door().complete(lane.chat(), caller=lane.caller, on_chunk=hear)
    assert reply.text == "Light is energy."
    assert await lane.outside_states() == ["committed"]


async def test_hold_and_commit_name_the_model_alike(lane: Lane) -> None:
    await lane.door().complete(lane.chat(model="one:model"), caller=lane.caller)
    assert {(each["provider"], each["model"]) for each in await lane.events()} == {("one", "model")}


async def test_a_failure_that_nobody_waits_for_any_more_is_no_defect(held_lane: Lane) -> None:
    upstream, door = _held(held_lane), held_lane.door()
    upstream.acts["one:model"] = raising(ModelUnavailable("Away."))
    call = asyncio.create_task(door.complete(held_lane.chat(model="one:model"), caller=held_lane.caller))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    await door.close()
    assert await held_lane.outside_states() in ([], ["cancelled"])
