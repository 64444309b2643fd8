"""An attempt that was taken for dead and goes on changes no results, no checkpoints and no money (X14)."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from db.postgres.grading import PostgresThreads
from db.postgres.prices import PostgresPrices
from domain.batch import Batch
from domain.ports import AssessmentStart
from domain.prices import Unit, own_prices
from domain.states import BatchState, FileState
from gateway.catalogue import canonical_name, catalogue
from runtime.resources import Resources
from tests.builders import a_submission, open_batch
from tests.river.installation import calls_in
from tests.river.test_money_kills import ROOT, USD_IN, USD_OUT, until
from tests.river.test_money_kills import _variables as variables_of
from tests.workflows import plant
from tests.workflows.test_pauses import MeteredModel, is_paused, raise_limit
from tests.workflows.zombie_worker import REFUSED, TAKEN

QUESTIONS = 2
STORES = ("threads", "checkpoints", "submissions")

#: everything that an attempt may change
STORED_SQL = {
    "results": "SELECT submission_id, question_id, generation, result FROM grading_results ORDER BY 1, 2, 3",
    "proposals": "SELECT submission_id::text, thread_id, epoch, document FROM assessments ORDER BY 1",
    "submissions": "SELECT id::text, status, score, generation FROM submissions ORDER BY 1",
    "threads": "SELECT thread_id, epoch FROM agent_threads ORDER BY 1",
    "checkpoints": "SELECT thread_id, checkpoint_id, checkpoint FROM checkpoints ORDER BY 1, 2",
    "writes": "SELECT thread_id, checkpoint_id, task_id, idx FROM checkpoint_writes ORDER BY 1, 2, 3, 4",
    "money": "SELECT event_id::text FROM ledger_events ORDER BY 1",
    "dispatches": "SELECT call_id::text, attempt, state FROM ledger_holds ORDER BY 1, 2",
}


@dataclass
class Zombies:
    """Workers of one attempt each, that stand still in front of their stores."""

    resources: Resources
    folder: Path
    workers: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)

    def start(self) -> None:
        """One for each store."""
        script = self.folder / "script.yaml"
        script.write_text(yaml.safe_dump({"calls_log": str(self.folder / "calls.jsonl")}))
        for store in STORES:
            with self.log(store).open("wb") as log:
                self.workers[store] = subprocess.Popen(
                    [sys.executable, "-m", "tests.workflows.zombie_worker", store],
                    cwd=ROOT,
                    env=variables_of(self.resources, script),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )

    def log(self, store: str) -> Path:
        """What its worker has said."""
        return self.folder / f"{store}.log"

    @property
    def stand_still(self) -> bool:
        """Whether all of them do."""
        states = [psutil.Process(worker.pid).status() for worker in self.workers.values()]
        return states == [psutil.STATUS_STOPPED] * len(STORES)

    def go_on(self) -> None:
        """Let all of them do what they were about to do."""
        for worker in self.workers.values():
            worker.send_signal(signal.SIGCONT)

    @property
    def were_answered(self) -> bool:
        """Whether each store has answered its zombie; it must have refused."""
        told = {store: self.log(store).read_text() for store in STORES}
        assert not [store for store, log in told.items() if TAKEN in log], told
        return all(REFUSED in log for log in told.values())

    @property
    def seen(self) -> int:
        """How many calls their upstream has seen."""
        return sum(call["event"] == "begun" for call in calls_in(self.folder / "calls.jsonl"))


@pytest.fixture
def zombies(resources: Resources, tmp_path: Path) -> Iterator[Zombies]:
    """Not started yet; killed at the end."""
    made = Zombies(resources, tmp_path)
    yield made
    for worker in made.workers.values():
        worker.kill()
        worker.wait()


async def priced_batch(resources: Resources) -> Batch:
    """A file for each zombie, by a model that costs something."""
    prices = PostgresPrices(resources.postgres, catalogue=catalogue, canonical=canonical_name)
    stated = [(Unit.TOKENS_IN, USD_IN), (Unit.TOKENS_OUT, USD_OUT), (Unit.TOKENS_CACHED, USD_IN)]
    await prices.add(own_prices("scripted", stated))
    return await open_batch(
        resources,
        {name: a_submission(plant.answers_to(QUESTIONS)) for name in plant.names(len(STORES))},
        exam=plant.exam_of(QUESTIONS),
    )


async def stored(resources: Resources) -> dict[str, list[dict[str, Any]]]:
    """All of it."""
    return {name: await resources.postgres.rows(query) for name, query in STORED_SQL.items()}


async def has_ended(resources: Resources, batch: Batch) -> bool:
    """Whether one of its files has."""
    return FileState.COMPLETED in {file.state for file in await plant.files_of(resources, batch)}


@pytest.mark.prove
async def test_zombies_change_nothing_while_their_successors_are_at_work_nor_after(
    resources: Resources, zombies: Zombies
) -> None:
    model = plant.WatchedModel(holds=lambda _: True)
    zombies.start()
    async with plant.running(plant.orchestration(resources)):
        batch = await priced_batch(resources)
        await plant.start(resources, batch)
        await until(lambda: zombies.stand_still, "all zombies stand still")
        seen = zombies.seen
        # q2 of the one that was about to save q1, both of the one that was about to begin; none of the third
        assert seen == 1 + 2
        async with plant.running(plant.cognition(resources, model)):
            await model.is_holding(1 + 2)
            # the third has nothing left to ask: its successor must not be what is seen to change
            await until(lambda: has_ended(resources, batch), "one submission is saved")
            before = await stored(resources)
            zombies.go_on()
            await until(lambda: zombies.were_answered, "all zombies are refused")
            assert await stored(resources) == before
            model.released.set()
            (ended,) = await plant.all_ended(resources, batch)
    assert ended.state is BatchState.COMPLETED
    assert zombies.seen == seen, "a zombie has asked its upstream again"
    assert set(model.begun.values()) == {1}
    files = await plant.files_of(resources, batch)
    assert [file.score for file in files] == [3.0 * QUESTIONS] * len(STORES)
    after = await stored(resources)
    assert len(after["money"]) == 2 * QUESTIONS * len(STORES), "a hold and a commit for each call"
    assert {row["state"] for row in after["dispatches"]} == {"committed"}
    assert (await resources.ledger.books.verify())[1] == []


async def test_an_agent_that_is_started_again_after_a_pause_is_not_locked_out(resources: Resources) -> None:
    model = MeteredModel(limit=1)
    batch = await open_batch(
        resources, {"a.json": a_submission(plant.answers_to(QUESTIONS))}, exam=plant.exam_of(QUESTIONS)
    )
    before = datetime.now(UTC)
    async with plant.running(plant.orchestration(resources), plant.cognition(resources, model)):
        await plant.start(resources, batch)
        await is_paused(resources, batch)
        (paused,) = await plant.files_of(resources, batch)
        model.limit = QUESTIONS
        await raise_limit(resources, batch, 1_000_000_000)
        (ended,) = await plant.all_ended(resources, batch)
    assert ended.state is BatchState.COMPLETED
    (file,) = await plant.files_of(resources, batch)
    assert (file.state, file.run_id) == (FileState.COMPLETED, paused.run_id)
    # an attempt number would have started again at 1
    (thread,) = await resources.postgres.rows("SELECT epoch, scheduled_at FROM agent_threads")
    assert thread["epoch"] == 2
    assert thread["scheduled_at"] > before
    assert set(model.paid.values()) == {1}


async def test_an_attempt_that_begins_after_its_successor_is_refused(resources: Resources) -> None:
    batch = await open_batch(resources, {"a.json": a_submission()})
    (file,) = await plant.files_of(resources, batch)
    await resources.postgres.run("UPDATE files SET state = 'queued' WHERE id = %s", [file.id])
    threads = PostgresThreads(resources.postgres)

    async def begun(second: int) -> int | None:
        moment = datetime(2026, 1, 1, 12, 0, second, tzinfo=UTC)
        return await threads.begin(AssessmentStart(file.id, 1, "run", "workflow", "run", moment))

    assert await begun(20) == 1
    assert await begun(10) is None, "it would have superseded its successor"
    assert await begun(30) == 2
