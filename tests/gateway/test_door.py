"""The door: whatever becomes of a call, it is paid for once and its reply is kept."""

import asyncio
from dataclasses import replace
from uuid import uuid4

import pytest

from db.postgres.prices import PostgresPrices, PostgresTokenRatios
from domain.completion import CompletionReply, CompletionRequest, Message
from domain.errors import BudgetExhausted, ModelUnavailable, UnknownModel, UnpricedModel
from domain.estimates import MIN_CALLS
from domain.identity import LogicalStep
from domain.ledger import Account, Mode, Scope
from domain.money import Money
from gateway.catalogue import canonical_name, catalogue
from gateway.tokens import WRITE_EVERY_CALLS, TokenEstimates, input_bytes
from runtime.resources import Resources
from tests.gateway.lane import COST, QUESTION, Lane, at_once, opened_lane


@pytest.fixture
async def lane(session_resources: Resources) -> Lane:
    """A lane whose model costs a thousand nano-dollars a token in, two thousand out."""
    return await opened_lane(session_resources)


async def test_a_repeated_call_is_answered_from_the_journal_and_not_paid_again(lane: Lane) -> None:
    first = await lane.door().complete(lane.request())
    again = await lane.door().complete(lane.request())
    assert again == first
    assert first.cost_nanodollars == COST
    assert lane.upstream.calls.total() == 1
    assert await lane.states() == ["committed"]
    assert await lane.spent() == COST


async def test_the_same_step_with_another_answer_is_another_call_and_a_fact(lane: Lane) -> None:
    await lane.door().complete(lane.request())
    await lane.door().complete(lane.request(answer="Something else."))
    assert lane.upstream.calls.total() == 2
    assert await lane.spent() == 2 * COST
    facts = await lane.resources.postgres.rows(
        "SELECT kind FROM ledger_facts WHERE kind = 'diverged' AND batch_id = %s", [lane.payer.batch_id]
    )
    assert len(facts) == 1


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ModelUnavailable("Connection refused."), "cancelled"),
        (UnknownModel("No such model."), "cancelled"),
        (ModelUnavailable("Cut off after sending.", in_doubt=True), "in_doubt"),
    ],
)
async def test_a_refusal_costs_nothing_and_what_may_have_been_answered_is_in_doubt(
    lane: Lane, error: Exception, state: str
) -> None:
    async def fail(_: CompletionRequest) -> CompletionReply:
        raise error

    lane.upstream.act = fail
    with pytest.raises(type(error)):
        await lane.door().complete(lane.request())
    assert await lane.states() == [state]
    lane.upstream.act = at_once
    await lane.door().complete(lane.request())
    assert await lane.states() == [state, "committed"]
    assert await lane.spent() == COST


async def test_no_reply_in_time_is_a_doubt(lane: Lane) -> None:
    async def hang(request: CompletionRequest) -> CompletionReply:
        await asyncio.sleep(60)
        return await at_once(request)

    lane.upstream.act = hang
    with pytest.raises(ModelUnavailable, match=r"no reply in 0\.2 s") as raised:
        await replace(lane, timeout_seconds=0.2).door().complete(lane.request())
    # Temporal follows causes to their end
    assert isinstance(raised.value.__cause__, TimeoutError)
    assert await lane.states() == ["in_doubt"]


async def test_a_reply_that_came_is_kept_although_its_caller_has_gone(lane: Lane) -> None:
    arrived = asyncio.Event()

    async def arrive(request: CompletionRequest) -> CompletionReply:
        arrived.set()
        return await at_once(request)

    lane.upstream.act = arrive
    calling = asyncio.create_task(lane.door().complete(lane.request()))
    await arrived.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert await lane.states() == ["committed"]
    await lane.door().complete(lane.request())
    assert lane.upstream.calls.total() == 1


async def test_a_call_that_is_cancelled_under_way_is_a_doubt(lane: Lane) -> None:
    begun = asyncio.Event()

    async def hang(request: CompletionRequest) -> CompletionReply:
        begun.set()
        await asyncio.sleep(60)
        return await at_once(request)

    lane.upstream.act = hang
    calling = asyncio.create_task(lane.door().complete(lane.request()))
    await begun.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert await lane.states() == ["in_doubt"]


async def test_a_second_attempt_waits_for_the_first_and_takes_its_reply(lane: Lane) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def hold(request: CompletionRequest) -> CompletionReply:
        begun.set()
        await go_on.wait()
        return await at_once(request)

    lane.upstream.act = hold
    first = asyncio.create_task(lane.door().complete(lane.request()))
    await begun.wait()
    second = asyncio.create_task(lane.door().complete(lane.request()))
    await asyncio.sleep(0.1)
    go_on.set()
    assert await first == await second
    assert lane.upstream.calls.total() == 1


async def test_a_limit_refuses_by_the_worst_case_before_anything_is_sent(lane: Lane) -> None:
    account = Account(lane.payer.tenant_id, Scope.BATCH, lane.payer.batch_id)
    await lane.resources.ledger.books.set_limit(account, Money(1_000))
    with pytest.raises(BudgetExhausted) as caught:
        await lane.door().complete(lane.request())
    assert caught.value.scope == "batch"
    assert caught.value.missing_nanodollars > 0
    assert not lane.upstream.calls


async def test_work_that_accepts_an_overrun_is_paid_for_once_too(lane: Lane) -> None:
    account = Account(lane.payer.tenant_id, Scope.BATCH, lane.payer.batch_id)
    await lane.resources.ledger.books.set_limit(account, Money(10**9), Mode.BEST_EFFORT)
    first = await lane.door().complete(lane.request())
    assert await lane.door().complete(lane.request()) == first
    assert lane.upstream.calls.total() == 1
    assert await lane.states() == ["committed"]
    assert await lane.spent() == COST


async def test_a_model_without_a_price_is_not_asked(lane: Lane) -> None:
    with pytest.raises(UnpricedModel, match="assay prices set campus:unheard-of"):
        await lane.door().complete(lane.request(model="campus:unheard-of"))
    assert not lane.upstream.calls


async def test_a_model_of_the_catalogue_has_its_price_by_whatever_name_it_goes(resources: Resources) -> None:
    prices = PostgresPrices(resources.postgres, catalogue=catalogue, canonical=canonical_name)
    dated = await prices.of_model("openai:gpt-4o-mini-2024-07-18")
    assert dated == await prices.of_model("openai:gpt-4o-mini")
    assert dated.rates(1).cost({"tokens_in": 1_000_000, "tokens_out": 0}) == 150_000_000
    assert not await prices.add(catalogue()), "a catalogue is imported once"


async def test_what_is_shown_in_force_is_the_one_list_that_counts(lane: Lane) -> None:
    prices = PostgresPrices(lane.resources.postgres, catalogue=catalogue, canonical=canonical_name)
    shown = {row["unit"]: row["nanodollars_per_million"] for row in await prices.show("scripted", 10)}
    in_force = {
        each.unit: each.nanodollars_per_million for each in (await prices.of_model("scripted")).prices
    }
    assert shown == in_force == {"tokens_in": 10**9, "tokens_out": 2 * 10**9}


async def test_a_family_is_learned_and_then_believed(resources: Resources) -> None:
    ratios = PostgresTokenRatios(resources.postgres)
    estimates = TokenEstimates(ratios)
    model = f"campus:{uuid4().hex}"
    step = LogicalStep("f", 1, "q2", "all", "first")
    request = CompletionRequest(step, 1, model, QUESTION, "x", messages=(Message("user", "x" * 1_000),))
    size = input_bytes(request)
    assert await estimates.most_tokens_in(request, request.model) >= size, (
        "nothing is known: a byte may be a token"
    )
    for _ in range(WRITE_EVERY_CALLS):
        await estimates.learn(request, request.model, tokens_in=size // 4)
    family = f"campus:{model.partition(':')[2]}"
    known = await ratios.of_family(family)
    assert sum(known.values()) == WRITE_EVERY_CALLS
    await ratios.add(family, {next(iter(known)): MIN_CALLS})
    assert await TokenEstimates(ratios).most_tokens_in(request, request.model) < size / 2
