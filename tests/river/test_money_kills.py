"""kill -9 and zombies between a call's hold and its checkpoint: one commit a call, each accounted for."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from db.postgres.prices import PostgresPrices
from domain.batch import Batch
from domain.identity import LogicalStep
from domain.ledger import Rates
from domain.money import Money
from domain.prices import Unit, own_prices
from domain.states import BatchState
from gateway.catalogue import canonical_name, catalogue
from runtime.client import ApiClient
from runtime.resources import Resources
from runtime.server import services
from tests.builders import a_submission, open_batch
from tests.river.classroom import OPEN, Classroom
from tests.river.installation import Up, calls_in, run_assay, wait_ended
from tests.river.installation import until as wait_until
from tests.river.test_worker_kills import durable_answers, in_flight
from tests.workflows import plant

QUESTIONS = 5
#: how long a reply may take, and so how long a retry waits for the call of an attempt that died
TIMEOUT_SECONDS = 2.0
#: dollars for a million tokens
USD_IN, USD_OUT = "0.40", "1.60"
RATES = Rates("", {"tokens_in": 400_000_000, "tokens_out": 1_600_000_000})
ONCE = dict.fromkeys((f"q{number + 1}" for number in range(QUESTIONS)), 1)
COMMITTED = {question: ["committed"] for question in ONCE}

ROOT = Path(__file__).parents[2]


@dataclass
class Works:
    """A batch of one submission, its workflows in this process, and mortal workers for its agent."""

    resources: Resources
    folder: Path
    batch: Batch
    workers: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    @property
    def calls(self) -> list[dict[str, Any]]:
        """What the upstream saw, in order."""
        return calls_in(self.folder / "calls.jsonl")

    @property
    def seen(self) -> dict[str, int]:
        """How many calls the upstream saw for each question."""
        return Counter(_question(call["key"]) for call in self.calls if call["event"] == "begun")

    @property
    def struck(self) -> str:
        """The question whose call met the signal."""
        return LogicalStep.parse((self.folder / "marker").read_text()).question_id

    def work(
        self, moment: str = "", number: int = 0, by: signal.Signals = signal.SIGKILL, **rule: Any
    ) -> "subprocess.Popen[bytes]":
        """Start a worker, with a fate or without one, and a rule of its upstream."""
        script = self.folder / f"script-{len(self.workers)}.yaml"
        rules = [rule] if rule else []
        script.write_text(yaml.safe_dump({"rules": rules, "calls_log": str(self.folder / "calls.jsonl")}))
        fate = [moment, str(number), by.name, str(self.folder / "marker")] if moment else []
        with (self.folder / "workers.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "tests.river.mortal_worker", *fate],
                cwd=ROOT,
                env=_variables(self.resources, script),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.workers.append(worker)
        return worker

    async def is_killed(self, worker: "subprocess.Popen[bytes]") -> None:
        """Wait until the worker has had its fate."""
        assert await asyncio.to_thread(worker.wait, 40) == -signal.SIGKILL

    async def is_stopped(self, worker: "subprocess.Popen[bytes]") -> None:
        """Wait until the worker stands still."""
        await until(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED, "stopped")

    async def end(self, worker: "subprocess.Popen[bytes]") -> None:
        """Let the worker end in order."""
        worker.terminate()
        assert await asyncio.to_thread(worker.wait, 20) == 0

    async def finished(self) -> None:
        """The batch ends completed, with full marks and one assessment."""
        (ended,) = await plant.all_ended(self.resources, self.batch, within_seconds=60)
        assert ended.state is BatchState.COMPLETED
        await self.is_exact()

    async def is_exact(self) -> None:
        """The results are whole, and were recorded once."""
        (file,) = await plant.files_of(self.resources, self.batch)
        assert file.score == 3.0 * QUESTIONS
        told = [kind for _, kind, _ in await plant.file_events(self.resources, self.batch)]
        assert told.count("FileAssessed") == 1

    # --- the money ---

    async def states(self) -> dict[str, list[str]]:
        """Where every dispatch of each question's call is, oldest first."""
        rows = await self._rows(
            "SELECT h.state, split_part(j.step, '/', 3) AS question FROM ledger_holds h "
            "LEFT JOIN ledger_journal j USING (call_id) WHERE h.batch_id = %s ORDER BY h.attempt"
        )
        found: dict[str, list[str]] = {}
        for row in rows:
            found.setdefault(row["question"], []).append(row["state"])
        return found

    async def journaled(self) -> set[str]:
        """The questions whose reply is in the journal."""
        return {
            row["question"]
            for row in await self._rows(
                "SELECT split_part(step, '/', 3) AS question FROM ledger_journal WHERE batch_id = %s"
            )
        }

    async def events(self) -> Counter[str]:
        """How many events of each type there are."""
        return Counter(row["event_type"] for row in await self._events())

    async def facts(self) -> Counter[str]:
        """How many facts of each kind there are."""
        return Counter(
            row["kind"] for row in await self._rows("SELECT kind FROM ledger_facts WHERE batch_id = %s")
        )

    async def adds_up(self, *, settling: int) -> int:
        """Events, account, progress and report say the same; answers what was spent."""
        events = await self._events()
        charged = [row for row in events if row["event_type"] in ("commit", "adjust")]
        costs = [_cost(row["usage"]) for row in charged]
        assert [row["cost_actual_nanodollars"] for row in charged] == costs
        spent = sum(costs)
        (account,) = await self.resources.ledger.books.balances("local", subject=self.batch.id)
        (doubts,) = await self._rows(
            "SELECT coalesce(sum(open_nanodollars), 0)::bigint AS open, count(*) AS number "
            "FROM ledger_holds WHERE batch_id = %s AND state = 'in_doubt'"
        )
        assert doubts["number"] == settling
        assert (account.spent, account.held) == (spent, doubts["open"])
        progress = await services(self.resources).batches.progress(self.batch.id)
        assert (progress.spent_nanodollars, progress.settling_nanodollars) == (spent, doubts["open"])
        usage = (await services(self.resources).results.report("local", self.batch.id))["usage"]
        assert (usage["cost_nanodollars"], usage["settling_nanodollars"]) == (spent, doubts["open"])
        assert await self.resources.ledger.books.verify() == (len(events), [])
        return spent

    async def _events(self) -> list[dict[str, Any]]:
        return await self._rows("SELECT * FROM ledger_events WHERE batch_id = %s")

    async def _rows(self, query: str) -> list[dict[str, Any]]:
        return await self.resources.postgres.rows(query, [self.batch.id])


def _question(key: str) -> str:
    return LogicalStep.parse(key.rpartition("/")[0]).question_id


def _cost(usage: dict[str, int]) -> Money:
    return RATES.cost({name: usage[name] for name in ("tokens_in", "tokens_out")})


def _variables(resources: Resources, script: Path) -> dict[str, str]:
    """The settings of a worker of these resources."""
    settings = resources.settings
    assert settings.postgres.url is not None
    assert settings.redis.url is not None
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ASSAY_")}
    return inherited | {
        "ASSAY_POSTGRES__URL": settings.postgres.url.get_secret_value(),
        "ASSAY_REDIS__URL": settings.redis.url.get_secret_value(),
        "ASSAY_TEMPORAL__ADDRESS": str(settings.temporal.address),
        "ASSAY_TEMPORAL__NAMESPACE": settings.temporal.namespace,
        "ASSAY_TEMPORAL__COGNITION_QUEUE": settings.temporal.cognition_queue,
        "ASSAY_OBJECTS__URL": settings.objects_url,
        "ASSAY_MODELS__SCRIPT": str(script),
        "ASSAY_MODELS__TIMEOUT_SECONDS": str(TIMEOUT_SECONDS),
        "ASSAY_WORKER__HEARTBEAT_TIMEOUT_SECONDS": str(settings.worker.heartbeat_timeout_seconds),
        # calls one after another; and who stands still has no room for another attempt
        "ASSAY_WORKER__MAX_PARALLEL_CALLS": "1",
        "ASSAY_WORKER__MAX_ASSESSMENTS": "1",
        "ASSAY_WORKER__SHUTDOWN_SECONDS": "2",
    }


async def until(holds: Callable[[], bool | Awaitable[bool]], what: str, within_seconds: float = 120) -> None:
    """Wait until the condition, or what it awaits, is true."""
    try:
        async with asyncio.timeout(within_seconds):
            while True:
                answer = holds()
                if answer if isinstance(answer, bool) else await answer:
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"not within {within_seconds:g} s: {what}")


@pytest.fixture
async def works(resources: Resources, tmp_path: Path) -> AsyncIterator[Works]:
    """A started batch of one submission, by a scripted model that costs something; nobody assesses yet."""
    prices = PostgresPrices(resources.postgres, catalogue=catalogue, canonical=canonical_name)
    stated = [(Unit.TOKENS_IN, USD_IN), (Unit.TOKENS_OUT, USD_OUT), (Unit.TOKENS_CACHED, USD_IN)]
    await prices.add(own_prices("scripted", stated))
    batch = await open_batch(
        resources,
        {"student.json": a_submission(plant.answers_to(QUESTIONS))},
        exam=plant.exam_of(QUESTIONS),
    )
    made = Works(resources, tmp_path, batch)
    try:
        async with plant.running(plant.orchestration(resources)):
            await plant.start(resources, batch)
            yield made
    finally:
        for worker in made.workers:
            worker.kill()
            worker.wait()


def five(chosen: int) -> list[Any]:
    """Five kills, each at another call; the chosen one is made in every proof."""
    return [
        pytest.param(number, marks=pytest.mark.prove if number == chosen else pytest.mark.long)
        for number in range(1, QUESTIONS + 1)
    ]


@pytest.mark.parametrize("number", five(3))
async def test_killed_between_commit_and_checkpoint_the_reply_comes_from_the_journal(
    works: Works, number: int
) -> None:
    await works.is_killed(works.work("after-settle", number))
    url = works.resources.settings.postgres.url
    assert works.struck in await works.journaled()
    durable = {question for _, question in await durable_answers(url.get_secret_value())}
    assert works.struck not in durable, "a checkpoint has it, and nothing is proved"
    works.work()
    await works.finished()
    assert works.seen == ONCE
    assert await works.states() == COMMITTED
    assert await works.events() == {"precheck_hold": QUESTIONS, "commit": QUESTIONS}
    assert await works.facts() == {"dispatched": QUESTIONS}
    await works.adds_up(settling=0)


@pytest.mark.parametrize("number", five(3))
async def test_killed_between_dispatch_and_commit_the_call_is_made_again_and_the_first_is_in_doubt(
    works: Works, number: int
) -> None:
    await works.is_killed(works.work("before-settle", number))
    assert works.struck not in await works.journaled()
    works.work()
    await works.finished()
    assert works.seen == ONCE | {works.struck: 2}
    assert await works.states() == COMMITTED | {works.struck: ["in_doubt", "committed"]}
    assert await works.events() == {"precheck_hold": QUESTIONS + 1, "commit": QUESTIONS}
    assert await works.facts() == {"dispatched": QUESTIONS + 1, "in_doubt": 1}
    await works.adds_up(settling=1)


@pytest.mark.parametrize(
    ("moment", "states", "seen", "events"),
    [
        # nothing was held: as if it had never been
        pytest.param("before-begin", ["committed"], 1, {}, marks=pytest.mark.long),
        # held and dispatched, and never sent: nobody can know, so it is a doubt like any other
        pytest.param(
            "after-begin", ["in_doubt", "committed"], 1, {"precheck_hold": 1}, marks=pytest.mark.prove
        ),
    ],
)
async def test_killed_around_the_hold_the_call_is_made_once(
    works: Works, moment: str, states: list[str], seen: int, events: dict[str, int]
) -> None:
    await works.is_killed(works.work(moment, 3))
    works.work()
    await works.finished()
    assert works.seen == ONCE | {works.struck: seen}
    assert await works.states() == COMMITTED | {works.struck: states}
    usual = Counter(precheck_hold=QUESTIONS, commit=QUESTIONS)
    assert await works.events() == usual + Counter(events)
    await works.adds_up(settling=states.count("in_doubt"))


@pytest.mark.long
@pytest.mark.parametrize(("moment", "ended"), [("before-cancel", "in_doubt"), ("after-cancel", "cancelled")])
async def test_killed_around_a_refusal_nothing_is_charged_that_is_known_to_be_free(
    works: Works, moment: str, ended: str
) -> None:
    await works.is_killed(works.work(moment, 1, match="q3", fail="model_unavailable"))
    works.work()
    await works.finished()
    assert works.struck == "q3"
    assert works.seen == ONCE | {"q3": 2}
    assert await works.states() == COMMITTED | {"q3": [ended, "committed"]}
    usual = Counter(precheck_hold=QUESTIONS + 1, commit=QUESTIONS)
    assert await works.events() == usual + Counter({"cancel": 1} if ended == "cancelled" else {})
    await works.adds_up(settling=[ended].count("in_doubt"))


@pytest.mark.long
@pytest.mark.parametrize("moment", ["before-doubt", "after-doubt"])
async def test_killed_around_a_doubt_there_is_one(works: Works, moment: str) -> None:
    await works.is_killed(works.work(moment, 1, match="q3", hang_seconds=60))
    works.work()
    await works.finished()
    assert works.struck == "q3"
    assert works.seen == ONCE | {"q3": 2}
    assert await works.states() == COMMITTED | {"q3": ["in_doubt", "committed"]}
    assert await works.facts() == {"dispatched": QUESTIONS + 1, "in_doubt": 1}
    await works.adds_up(settling=1)


@pytest.mark.parametrize(
    ("moment", "states"),
    [
        pytest.param("after-settle", ["committed"], marks=pytest.mark.prove),
        pytest.param("before-settle", ["in_doubt", "committed"], marks=pytest.mark.long),
    ],
)
async def test_a_reset_of_file_and_batch_pays_for_nothing_twice(
    works: Works, moment: str, states: list[str]
) -> None:
    (file,) = await plant.files_of(works.resources, works.batch)
    child = plant.child_of(works.resources, file)
    await works.is_killed(works.work(moment, 3))
    (before,) = await plant.files_of(works.resources, works.batch)
    await plant.reset(works.resources, child)
    await plant.reset(works.resources, plant.handle_of(works.resources, works.batch))
    works.work()
    await works.finished()
    (after,) = await plant.files_of(works.resources, works.batch)
    assert after.run_id != before.run_id, "no new thread, and the checkpoints would do"
    assert works.seen == ONCE | {works.struck: len(states)}
    assert await works.states() == COMMITTED | {works.struck: states}
    assert (await works.events())["commit"] == QUESTIONS
    spent = await works.adds_up(settling=states.count("in_doubt"))
    # once more, when all is done
    await plant.reset(works.resources, child)
    assert (await child.result()).state == "completed"
    await works.is_exact()
    assert works.seen == ONCE | {works.struck: len(states)}
    assert await works.adds_up(settling=states.count("in_doubt")) == spent


@pytest.mark.prove
async def test_a_zombie_that_is_too_late_has_its_reply_charged_and_changes_nothing_else(works: Works) -> None:
    zombie = works.work("before-settle", 3, signal.SIGSTOP)
    await works.is_stopped(zombie)
    works.work()
    await works.finished()
    assert await works.states() == COMMITTED | {works.struck: ["in_doubt", "committed"]}
    spent = await works.adds_up(settling=1)
    zombie.send_signal(signal.SIGCONT)
    settled = COMMITTED | {works.struck: ["adjusted", "committed"]}
    await until(lambda: is_so(works, settled), "the late reply is settled")
    await works.end(zombie)
    assert works.seen == ONCE | {works.struck: 2}
    assert await works.states() == settled
    assert await works.events() == {"precheck_hold": QUESTIONS + 1, "commit": QUESTIONS, "adjust": 1}
    # every reply of this upstream costs the same
    assert await works.adds_up(settling=0) == spent * (QUESTIONS + 1) // QUESTIONS
    await works.is_exact()


@pytest.mark.prove
async def test_a_zombie_that_is_first_has_its_reply_journaled_and_the_other_one_charged(works: Works) -> None:
    zombie = works.work("before-settle", 3, signal.SIGSTOP)
    await works.is_stopped(zombie)
    successor = works.work(match=works.struck, hang_seconds=1.5)
    await until(lambda: works.seen[works.struck] == 2, "the successor has made the call again")
    assert in_flight(works.calls, successor.pid)
    zombie.send_signal(signal.SIGCONT)
    await works.finished()
    assert works.seen == ONCE | {works.struck: 2}
    assert await works.states() == COMMITTED | {works.struck: ["committed", "adjusted"]}
    assert await works.events() == {"precheck_hold": QUESTIONS + 1, "commit": QUESTIONS, "adjust": 1}
    begun = {_question(call["key"]) for call in works.calls if call["pid"] == zombie.pid}
    assert len(begun) == 3, "a superseded attempt has dispatched another call"
    await works.adds_up(settling=0)


@pytest.mark.long
async def test_a_zombie_of_the_run_before_a_reset_pays_for_nothing_twice(works: Works) -> None:
    (file,) = await plant.files_of(works.resources, works.batch)
    zombie = works.work("before-settle", 3, signal.SIGSTOP)
    await works.is_stopped(zombie)
    await plant.reset(works.resources, plant.child_of(works.resources, file))
    works.work(match=works.struck, hang_seconds=1.5)
    await until(lambda: works.seen[works.struck] == 2, "the new run has made the call again")
    zombie.send_signal(signal.SIGCONT)
    await works.finished()
    await works.end(zombie)
    states = await works.states()
    assert states[works.struck] == ["committed", "adjusted"]
    assert all(each.count("committed") == 1 for each in states.values())
    assert works.seen == {question: len(each) for question, each in states.items()}
    await works.adds_up(settling=sum(each.count("in_doubt") for each in states.values()))


async def is_so(works: Works, states: dict[str, list[str]]) -> bool:
    return await works.states() == states


# --- a limit -------------------------------------------------------------------------------------------

STUDENTS = 6
#: one hold of 0.0018, and half of the 0.00165 that the batch costs in all
LIMIT_USD = "0.0026"


def write_even_script(path: Path, calls_log: Path) -> Path:
    """The classroom's replies, each after the same time."""
    rules = [{"match": question, "reply": policy} for question, (policy, _) in OPEN.items()]
    script = {"latency_seconds": 0.2, "rules": rules, "calls_log": str(calls_log)}
    path.write_text(yaml.safe_dump(script))
    return path


def hand_in_limited(client: ApiClient, classroom: Classroom) -> str:
    """A started batch with a limit; answers its id."""
    exam_id = client.create_exam(classroom.exam)["id"]
    opening = {"kind": "grading", "exam_id": exam_id, "model": "scripted", "max_concurrent": 2}
    batch_id: str = client.post("/v1/batches", opening | {"limit_usd": LIMIT_USD})["batch_id"]
    for path in classroom.files:
        client.upload(batch_id, path)
    client.post(f"/v1/batches/{batch_id}/complete")
    return batch_id


def is_paused(batch: Mapping[str, Any]) -> bool:
    """Whether the batch is paused and nothing runs in it any more."""
    assert batch["status"] != "completed", "the limit was never reached"
    return batch["status"] == "paused" and not batch["progress"]["counts"]["running"]


def told(up: Up, *arguments: str) -> str:
    """What a command says."""
    done = run_assay(up.folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.prove
def test_a_batch_without_money_waits_through_a_restart_of_everything_and_ends_exactly(tmp_path: Path) -> None:
    classroom = Classroom.of(tmp_path / "class", STUDENTS)
    log = tmp_path / "calls.jsonl"
    settings = {
        "ASSAY_MODELS__SCRIPT": str(write_even_script(tmp_path / "script.yaml", log)),
        "ASSAY_MODELS__MAX_TOKENS": "100",
        "ASSAY_WORKER__MAX_PARALLEL_CALLS": "2",
        "ASSAY_WORKER__HEARTBEAT_TIMEOUT_SECONDS": "2",
        "ASSAY_WORKER__TASK_TIMEOUT_SECONDS": "2",
    }
    with Up(tmp_path / "data", **settings) as up, up.client() as client:
        rates = ("--tokens-in", "0.01", "--tokens-cached", "0.01", "--tokens-out", USD_OUT)
        told(up, "prices", "set", "scripted", *rates)
        path = f"/v1/batches/{hand_in_limited(client, classroom)}"
        wait_until(lambda: is_paused(client.get(path)), "paused", 90)
        before, calls = client.get(path), calls_in(log)
        up.kill()
    counts = before["progress"]["counts"]
    assert counts["completed"] + counts["paused"] + counts["queued"] == STUDENTS
    assert counts["completed"] > 0
    assert counts["paused"] > 0
    assert before["progress"]["pause"]["scope"] == "batch"
    with Up(tmp_path / "data", **settings) as up, up.client() as client:
        again = client.get(path)
        assert (again["status"], again["progress"]["counts"]) == ("paused", counts)
        assert again["progress"]["spent_usd"] == before["progress"]["spent_usd"]
        assert calls_in(log) == calls, "a paused batch has made calls"
        batch_id = before["batch_id"]
        told(up, "limit", batch_id, "1.00")
        assert wait_ended(client, batch_id) == "completed"
        classroom.assert_exact(client, batch_id)
        classroom.assert_events_exact(client, batch_id)
        begun = Counter(call["key"] for call in calls_in(log) if call["event"] == "begun")
        assert sorted(begun.values()) == [1] * STUDENTS * len(OPEN), "work was done twice"
        assert_money_adds_up(up, client, path, begun.total())


def assert_money_adds_up(up: Up, client: ApiClient, path: str, calls: int) -> None:
    """So many commits, one a call, no doubt and no cancel; their sum is what everybody says."""
    batch = client.get(path)
    arguments = ("--batch", batch["batch_id"], "--count", "10000", "--json")
    events = json.loads(told(up, "ledger", "statement", *arguments))
    assert Counter(each["event_type"] for each in events) == {"precheck_hold": calls, "commit": calls}
    commits = [each for each in events if each["event_type"] == "commit"]
    assert len({each["call_id"] for each in commits}) == calls
    spent = sum(Decimal(each["actual_usd"]) for each in commits)
    assert spent > 0
    assert Decimal(batch["progress"]["spent_usd"]) == spent
    assert Decimal(batch["progress"]["settling_usd"]) == 0
    usage = client.report(batch["batch_id"])["usage"]
    assert (Decimal(usage["cost_usd"]), Decimal(usage["settling_usd"])) == (spent, 0)
    verified = json.loads(told(up, "ledger", "verify", "--json"))
    assert verified == {"events": 2 * calls, "whole": True, "differences": []}
