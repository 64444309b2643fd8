"""The steps of a call, each by itself, and the way that they make together."""

import asyncio
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta

import pytest
import structlog

from domain.completion import AGENT_PATIENCE, IMPATIENT, CompletionReply, Patience, Payer, Usage
from domain.errors import BudgetExhausted, Forbidden, ModelReplyInvalid, ModelUnavailable
from domain.gateway import LimitState, RateLimit
from domain.ledger import FactKind
from gateway.attempts import Attempt
from gateway.context import Called, Context, Held, Routed
from gateway.listening import Listener
from gateway.quotas import QuotaStep
from gateway.settling import transformed
from gateway.steps import authenticated
from gateway.waiting import Later, NoRoom, UnderwayElsewhere, UpstreamFull, Waits, sleep_until
from tests.gateway.lane import Act, StreamingUpstream, Upstream, at_once, raising
from tests.gateway.paper import (
    CALLER,
    PAYER,
    PaperAffinities,
    PaperLedger,
    PaperLimits,
    a_chat,
    a_context,
    paper_door,
)

LIMITED = replace(CALLER, limits=(RateLimit("key/key", "calls", 1),))

SECTIONS = (
    "authenticated",
    "quota",
    "conversation",
    "routed",
    "held",
    "called",
    "transformed",
    "settled",
    "appended",
    "audited",
)


async def run(
    upstream: Upstream, context: Context, ledger: PaperLedger | None = None, **options: object
) -> Context:
    """The whole way of one call."""
    door = paper_door(upstream, ledger, **options)
    return await door.pipeline.run(context, Attempt(), Listener())


# --- each step ---------------------------------------------------------------------------------------


def test_an_outside_callers_key_pays_and_an_agents_request_says_who_does() -> None:
    outside = replace(a_context(), authenticated=None, caller=replace(CALLER, profile="class"))
    assert authenticated(outside).payer == Payer("tenant", "", "key", "class")
    agents = replace(a_context(a_chat(payer=Payer("other", "batch"))), caller=None)
    assert authenticated(agents).payer == Payer("other", "batch")


def test_a_call_with_a_section_more_is_the_same_call_otherwise() -> None:
    before = a_context()
    called = Called(CompletionReply("text", Usage(1, 2), "one:model"), "one:model")
    after = before.having(called=called, passed_over=frozenset({"two:model"}))
    assert after == replace(before, called=called, passed_over=frozenset({"two:model"}))
    assert before == a_context(before.request, arrived=before.arrived)
    # who pays may be known only later, and is part of which call it is
    outside = replace(before, authenticated=None, caller=replace(CALLER, tenant_id="other"))
    assert outside.having(authenticated=authenticated(outside)).key != outside.key


@pytest.mark.parametrize(
    ("patterns", "allowed"),
    [((), True), (("one:*",), True), (("two:*", "*:model"), True), (("two:*",), False)],
)
def test_a_key_is_held_to_its_patterns(patterns: tuple[str, ...], allowed: bool) -> None:
    context = replace(a_context(), caller=replace(CALLER, models=patterns))
    if allowed:
        assert authenticated(context)
    else:
        with pytest.raises(Forbidden) as caught:
            authenticated(context)
        assert caught.value.field == "model"


def test_a_counted_reply_is_passed_on_and_one_without_usage_is_estimated_and_marked() -> None:
    counted = CompletionReply("Light.", Usage(7, 3), "one:model")
    context = a_context(called=Called(counted, "one:model"))
    assert transformed(context).reply == counted
    uncounted = replace(counted, usage=Usage(0, 0))
    reply = transformed(replace(context, called=Called(uncounted, "one:model"))).reply
    assert reply.usage_estimated
    assert reply.usage.tokens_in >= len("What is light?") // 3
    assert reply.usage.tokens_out >= len("Light.") // 3


# --- waiting -----------------------------------------------------------------------------------------


def waits(patience: Patience = IMPATIENT, *, caller: object = CALLER, waited: float = 0.0) -> Waits:
    """The waits of a call that arrived so long ago."""
    context = a_context(a_chat(patience=patience), caller=caller)
    return Waits(replace(context, arrived=context.arrived - waited), sleep_until)


AWAY = ModelUnavailable("Away.")


@pytest.mark.parametrize(
    ("patience", "waited", "seconds", "retry"),
    [
        (IMPATIENT, 0.0, 0.01, False),
        (AGENT_PATIENCE, 0.0, 61.0, False),
        (AGENT_PATIENCE, 59.5, 1.0, False),
        (AGENT_PATIENCE, 0.0, 91.0, True),
    ],
)
async def test_a_wait_beyond_the_one_deadline_is_refused_at_once(
    patience: Patience, waited: float, seconds: float, retry: bool
) -> None:
    with pytest.raises(ModelUnavailable, match="Away"):
        await asyncio.wait_for(waits(patience, waited=waited).wait(Later(AWAY, "x", seconds, retry=retry)), 1)


@pytest.mark.parametrize("patience", [IMPATIENT, Patience(wait_on_rate_limit=True, max_wait_timeout_s=0.4)])
async def test_a_full_upstream_is_waited_for_until_the_deadline_and_not_longer(patience: Patience) -> None:
    asked: list[float] = []

    async def freed(within_seconds: float) -> None:
        asked.append(within_seconds)
        await asyncio.sleep(within_seconds)

    waiting = waits(patience)

    async def wait_on() -> None:
        while True:
            await waiting.wait(UpstreamFull(AWAY, freed))

    with pytest.raises(ModelUnavailable, match="Away"):
        await asyncio.wait_for(wait_on(), 60)
    # soon at first, then less and less often
    assert asked[:2] == ([0.05, 0.1] if patience.wait_on_rate_limit else [])
    assert sum(asked) <= 0.4


async def test_waits_are_told_by_their_reasons() -> None:
    patient = waits(AGENT_PATIENCE)
    for _ in range(2):
        await patient.wait(Later(AWAY, "cooldown", 0.01))
    await patient.wait(Later(AWAY, "in_doubt", retry=True))
    facts = list(patient.facts)
    assert [(kind, data["reason"], data["rounds"]) for kind, data in facts] == [
        (FactKind.WAITED, "cooldown", 2),
        (FactKind.RETRIED, "in_doubt", 1),
    ]
    assert int(facts[0][1]["waited_ms"]) >= 20
    assert int(facts[1][1]["waited_ms"]) < 20


async def test_a_full_limit_is_waited_for_by_agents_and_by_patient_clients_alone() -> None:
    full = NoRoom(BudgetExhausted("Full."), most_seconds=0.05)
    with pytest.raises(BudgetExhausted):
        await waits().wait(full)
    for patient in (waits(caller=None), waits(Patience(True, 0.05))):
        await patient.wait(full)
        with pytest.raises(BudgetExhausted):
            await patient.wait(full)


async def test_a_call_elsewhere_is_looked_for_ever_more_seldom_and_never_past_its_end() -> None:
    looks: list[float] = []

    async def look(moment: datetime) -> None:
        looks.append((moment - datetime.now(UTC)).total_seconds())

    line = Waits(a_context(), look)
    until = datetime.now(UTC) + timedelta(seconds=0.7)
    for _ in range(5):
        await line.wait(UnderwayElsewhere("key", until))
    # a busy machine looks at its clock late
    assert 0 < looks[0] <= 0.1 < looks[1] <= 0.2
    assert max(looks) <= 0.7


# --- the whole way -----------------------------------------------------------------------------------


async def test_each_step_writes_its_section_and_the_line_in_the_log_has_no_word_of_the_call() -> None:
    with structlog.testing.capture_logs() as lines:
        context = await run(Upstream(), replace(a_context(), authenticated=None))
    assert [each.name for each in fields(context) if each.name in SECTIONS] == list(SECTIONS)
    assert all(getattr(context, name) is not None for name in SECTIONS)
    (line,) = [each for each in lines if each["event"] == "call_ended"]
    assert (line["outcome"], line["candidate"], line["tokens_in"]) == ("ok", "one:model", 100)
    assert line["cost_nanodollars"] == 150_000
    assert "light" not in str(lines).lower()


async def test_a_failed_call_is_told_with_its_code() -> None:
    with structlog.testing.capture_logs() as lines, pytest.raises(ModelReplyInvalid):
        await run(Upstream(raising(ModelReplyInvalid("Nothing of use."))), a_context())
    assert [each["outcome"] for each in lines if each["event"] == "call_ended"] == ["model_reply_invalid"]


@pytest.mark.parametrize("act", [at_once, raising(AWAY)])
async def test_a_place_is_given_back_whatever_ends_the_call(act: Act) -> None:
    limits, ledger = PaperLimits(), PaperLedger()
    door = paper_door(Upstream(act), ledger, quotas=QuotaStep(limits, None, record=ledger.record))
    try:
        await door.complete(a_chat(), caller=LIMITED)
    except ModelUnavailable:
        assert act is not at_once
    (granted,) = limits.granted
    assert limits.given_back.keys() == {granted.id}
    assert granted.tokens >= 100 + len("What is light?")
    assert limits.given_back[granted.id] == (150 if act is at_once else 0)


async def test_limits_are_heard_before_anything_is_sent() -> None:
    heard: list[tuple[int, object]] = []
    upstream, ledger = Upstream(), PaperLedger()
    door = paper_door(upstream, ledger, quotas=QuotaStep(PaperLimits(), None, record=ledger.record))

    def hear(states: Sequence[LimitState]) -> None:
        heard.append((upstream.calls.total(), states[0].limit.unit))

    await door.complete(a_chat(), caller=LIMITED, on_limits=hear)
    assert heard == [(0, "calls")]


async def test_a_call_that_waits_for_room_goes_when_another_one_is_settled() -> None:
    ledger, released = PaperLedger(limit=500_000), asyncio.Event()

    async def slow(request: object) -> CompletionReply:
        await released.wait()
        return await at_once(request)  # type: ignore[arg-type]  # as every act

    upstream = Upstream(slow)
    door = paper_door(upstream, ledger)
    calls = [asyncio.create_task(door.complete(a_chat(str(number), payer=PAYER))) for number in range(3)]
    async with asyncio.timeout(60):
        while not ledger.refused:
            await asyncio.sleep(0)
        released.set()
        await asyncio.gather(*calls)
    assert sorted(ledger.states.values()) == ["committed"] * 3
    assert any(fact.kind is FactKind.WAITED for fact in ledger.facts)


async def test_a_preference_is_claimed_once_the_reply_is_settled() -> None:
    affinities = PaperAffinities()
    await run(Upstream(), a_context(a_chat(session_id="s")), affinities=affinities)
    assert affinities.known["tenant", "s"].model == "one:model"
    with pytest.raises(ModelUnavailable):
        await run(Upstream(raising(AWAY)), a_context(a_chat("d", session_id="t")), affinities=affinities)
    assert ("tenant", "t") not in affinities.known


async def test_the_context_after_a_replay_says_so() -> None:
    ledger = PaperLedger()
    first = await run(Upstream(), a_context(), ledger)
    again = await run(Upstream(), a_context(), ledger)
    assert again.replayed is not None
    assert again.settled == first.settled
    assert again.called is None
    assert first.held == Held(first.held.hold if first.held else None, ("one:model",))
    assert first.routed == Routed(("one:model",))


async def test_who_takes_nothing_for_long_has_gone() -> None:
    told: list[object] = []
    upstream = StreamingUpstream()
    listener = Listener(told.append)  # type: ignore[arg-type]  # fails when it is awaited, as one that has gone
    await paper_door(upstream).pipeline.run(a_context(), Attempt(), listener)
    assert len(told) == 1
    assert listener.told
