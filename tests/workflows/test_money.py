"""A batch and its money: every call held, paid once and added up; a limit that pauses and can be raised."""

from db.postgres.prices import PostgresPrices
from domain.batch import Batch
from domain.ledger import Rates
from domain.prices import Unit, own_prices
from domain.states import BatchState
from gateway.catalogue import canonical_name, catalogue
from gateway.scripted import Script
from runtime.resources import Resources
from runtime.server import services
from runtime.worker import cognition_worker
from tests.builders import a_submission, open_batch
from tests.workflows import plant
from tests.workflows.log_plant import HEALTHY, is_in, open_logs, parsing
from tests.workflows.test_pauses import is_paused, raise_limit

#: dollars for a million tokens
USD_IN, USD_OUT = "0.40", "1.60"
RATES = Rates("", {"tokens_in": 400_000_000, "tokens_out": 1_600_000_000})


async def price(resources: Resources, model: str) -> None:
    """Have the model cost something."""
    prices = PostgresPrices(resources.postgres, catalogue=catalogue, canonical=canonical_name)
    stated = [(Unit.TOKENS_IN, USD_IN), (Unit.TOKENS_OUT, USD_OUT), (Unit.TOKENS_CACHED, USD_IN)]
    await prices.add(own_prices(model, stated))


async def priced_class(
    resources: Resources, files: int, *, limit: int | None, max_concurrent: int = 3
) -> Batch:
    """A batch of one open question each, by a scripted model that costs something."""
    await price(resources, "scripted")
    return await open_batch(
        resources,
        {name: a_submission(plant.answers_to(1)) for name in plant.names(files)},
        exam=plant.exam_of(1),
        max_concurrent=max_concurrent,
        limit_nanodollars=limit,
    )


async def charged(resources: Resources, batch: Batch) -> list[dict[str, int]]:
    """Every reply that the ledger has paid for in the batch."""
    return await resources.postgres.rows(
        "SELECT call_id, (usage ->> 'tokens_in')::int AS tokens_in, "
        "(usage ->> 'tokens_out')::int AS tokens_out, cost_actual_nanodollars "
        "FROM ledger_events WHERE event_type = 'commit' AND batch_id = %s",
        [batch.id],
    )


async def test_what_a_batch_cost_is_what_its_calls_cost_everywhere(resources: Resources) -> None:
    batch = await priced_class(resources, 6, limit=None)
    async with plant.running(
        plant.orchestration(resources), plant.cognition(resources, plant.WatchedModel(Script()))
    ):
        await plant.start(resources, batch)
        (ended,) = await plant.all_ended(resources, batch)
        told = await plant.handle_of(resources, batch).query("progress")
    assert ended.state is BatchState.COMPLETED
    commits = await charged(resources, batch)
    costs = [RATES.cost({key: row[key] for key in ("tokens_in", "tokens_out")}) for row in commits]
    assert len(commits) == 6
    assert [row["cost_actual_nanodollars"] for row in commits] == costs
    spent = sum(costs)
    assert spent > 0
    progress = await services(resources).batches.progress(batch.id)
    assert (progress.spent_nanodollars, progress.settling_nanodollars) == (spent, 0)
    assert told["spent_nanodollars"] == spent
    report = await services(resources).results.report("local", batch.id)
    assert report["usage"]["cost_nanodollars"] == spent
    assert await resources.ledger.books.verify() == (2 * len(commits), [])


async def test_a_batch_that_runs_out_of_money_pauses_and_ends_exactly(resources: Resources) -> None:
    batch = await priced_class(resources, 8, limit=1, max_concurrent=4)
    model = plant.WatchedModel(Script())
    async with plant.running(plant.orchestration(resources), plant.cognition(resources, model)):
        await plant.start(resources, batch)
        await is_paused(resources, batch)
        refused = (await services(resources).batches.progress(batch.id)).pause
        assert refused is not None
        assert refused.scope == "batch"
        # room for the worst case of one call: the others wait until it is settled, and are refused then
        one_call = refused.missing_nanodollars + 1
        await raise_limit(resources, batch, one_call)
        await is_paused(resources, batch, pauses=2)
        paused = await services(resources).batches.progress(batch.id)
        assert paused.counts.completed == 1
        assert 0 < paused.spent_nanodollars <= one_call
        await raise_limit(resources, batch, 1_000_000_000)
        (ended,) = await plant.all_ended(resources, batch)
    assert ended.state is BatchState.COMPLETED
    commits = await charged(resources, batch)
    assert len(commits) == len({row["call_id"] for row in commits}) == 8
    assert set(model.returned.values()) == {1}, "no answer is paid for twice"
    spent = sum(row["cost_actual_nanodollars"] for row in commits)
    assert (await services(resources).batches.progress(batch.id)).spent_nanodollars == spent
    assert (await resources.ledger.books.verify())[1] == []


async def test_a_limit_that_is_enough_for_all_but_not_at_once_pauses_nothing(resources: Resources) -> None:
    batch = await priced_class(resources, 8, limit=1, max_concurrent=4)
    async with plant.running(
        plant.orchestration(resources), plant.cognition(resources, plant.WatchedModel(Script()))
    ):
        await plant.start(resources, batch)
        await is_paused(resources, batch)
        refused = (await services(resources).batches.progress(batch.id)).pause
        assert refused is not None
        # the worst case of two calls: what eight cost is far less
        await raise_limit(resources, batch, 2 * (refused.missing_nanodollars + 1))
        (ended,) = await plant.all_ended(resources, batch)
    assert ended.state is BatchState.COMPLETED
    rows = await resources.postgres.rows(
        "SELECT data FROM progress_events "
        "WHERE batch_id = %s AND file_id IS NULL AND data ->> 'to' = 'paused'",
        [batch.id],
    )
    assert len(rows) == 1, "the first pause alone"


CRASHED = HEALTHY + b"2026-01-02T03:05:00Z FATAL navd[22]: segfault at 0 ip 0000 error 4\n" * 5


async def test_a_diagnosis_that_runs_out_of_money_pauses_and_ends_exactly(resources: Resources) -> None:
    await price(resources, "local")
    batch = await open_logs(resources, {"a.log": CRASHED}, limit_nanodollars=1)
    workers = (plant.orchestration(resources), parsing(resources), cognition_worker(resources))
    async with plant.running(*workers):
        await plant.start(resources, batch)
        await is_in(resources, batch, BatchState.PAUSED)
        refused = (await services(resources).batches.progress(batch.id)).pause
        assert refused is not None
        assert (refused.scope, await charged(resources, batch)) == ("batch", [])
        # the worst case of its first call is missing; there are a few more of them
        await raise_limit(resources, batch, 10 * refused.missing_nanodollars)
        (ended,) = await plant.all_ended(resources, batch)
    assert ended.state is BatchState.COMPLETED
    commits = await charged(resources, batch)
    spent = sum(row["cost_actual_nanodollars"] for row in commits)
    assert len({row["call_id"] for row in commits}) == len(commits)
    progress = await services(resources).batches.progress(batch.id)
    assert (progress.spent_nanodollars, progress.settling_nanodollars) == (spent, 0)
    report = await services(resources).diagnosis_reports.report("local", batch.id)
    assert report["diagnosis"]["cost_nanodollars"] == spent > 0
    _, differences = await resources.ledger.books.verify()
    assert differences == []
