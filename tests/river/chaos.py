"""Chaos: what is done to a running batch at random, and the reckoning of what came out all the same."""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from threading import Event, Lock
from types import TracebackType
from typing import Any, Self

import psutil
import psycopg
from psycopg.rows import dict_row
from psycopg_pool import PoolTimeout
from redis import Redis
from rich.table import Table

from domain.errors import AssayError
from runtime.client import ApiClient
from tests.river.classroom import OPEN
from tests.river.installation import Up, calls_in, environment, patiently, run_assay, until
from tests.river.test_worker_kills import Answered, durable_answers, in_flight

ROOT = Path(__file__).parents[2]
#: of an agent's heartbeat and of a workflow's task: whoever stands still for longer is taken for dead
TIMEOUT_SECONDS = 2.0
#: how long a reply may take, and so how long a retry waits for the call of an attempt that died
REPLY_SECONDS = 4.0
#: how long a deed against a worker waits for calls in flight: a kill that meets nothing proves nothing,
#: and one that always comes before the worker has begun anything lets no batch end on a slow machine
AIM_SECONDS = 40.0
#: dollars for a million tokens
USD_IN, USD_OUT = "0.40", "1.60"

Row = dict[str, Any]


def settings_of(script: Path) -> dict[str, str]:
    """What an installation under chaos is set to: deaths are noticed soon."""
    return {
        "ASSAY_MODELS__SCRIPT": str(script),
        "ASSAY_MODELS__TIMEOUT_SECONDS": str(REPLY_SECONDS),
        "ASSAY_WORKER__HEARTBEAT_TIMEOUT_SECONDS": str(TIMEOUT_SECONDS),
        "ASSAY_WORKER__TASK_TIMEOUT_SECONDS": str(TIMEOUT_SECONDS),
    }


def told(up: Up, *arguments: str) -> str:
    """What a command says."""
    done = run_assay(up.folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(url: str, query: str, *parameters: Any) -> list[Row]:
    """What Postgres answers."""
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
        return connection.execute(query.encode(), parameters).fetchall()


class SecondWorker:
    """A worker for agents, or another program, beside the installation's; killed, it is started again."""

    def __init__(
        self, up: Up, program: Sequence[str] = ("tests.river.mortal_worker",), **settings: str
    ) -> None:
        self._program = program
        addresses = up.addresses
        self._variables = environment(
            up.folder,
            ASSAY_POSTGRES__URL=addresses.postgres_url,
            ASSAY_REDIS__URL=addresses.redis_url,
            ASSAY_TEMPORAL__ADDRESS=addresses.temporal_address,
            ASSAY_TEMPORAL__NAMESPACE=addresses.temporal_namespace,
            **settings,
        )
        self._log = up.folder / "logs" / "worker-second.log"
        # who kills it while another does would start one that nobody ends
        self._replacing = Lock()
        self.process = self._started()

    def _started(self) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *self._program],
                cwd=ROOT,
                env=self._variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """End it without a word, and start another."""
        with self._replacing:
            self.end()
            self.process = self._started()

    def end(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


@dataclass(frozen=True)
class Sample:
    """What was durable at a moment of Postgres' clock."""

    at: datetime
    answers: set[Answered]


class Chaos:
    """Does one thing after another to an installation, at random and without waiting for the last to end."""

    #: between two deeds
    PAUSE_SECONDS = (0.3, 1.5)

    def __init__(self, up: Up, second: SecondWorker, calls_log: Path, seed: int) -> None:
        self._up = up
        self._calls_log = calls_log
        self._second = second
        self._random = random.Random(seed)  # noqa: S311  what is drawn hides nothing
        self._doing = ThreadPoolExecutor(max_workers=8, thread_name_prefix="chaos")
        # deeds that wait for their moment must not keep anybody from looking
        self._looking = ThreadPoolExecutor(max_workers=1, thread_name_prefix="looking")
        self._begun: list[Future[None]] = []
        self._deck: list[str] = []
        self._over = Event()
        # whoever opens the door again would let in those whom another keeps out
        self._door = Lock()
        self.done: Counter[str] = Counter()
        self.samples: list[Sample] = []
        self.deeds: Mapping[str, Callable[[], None]] = {
            "kill -9 of a worker for agents": self._kill_the_worker,
            "kill -9 of the second worker for agents": self._kill_the_second,
            "kill -9 of the worker for workflows": lambda: self._kill("worker-orchestration"),
            "Valkey flushed": self._flush,
            "connections to Postgres cut for 1 to 3 s": lambda: self._cut(self._seconds(1, 3)),
            "Postgres stopped for 1 to 3 s": lambda: self._stop_postgres(self._seconds(1, 3)),
            "a worker for agents stopped beyond its heartbeat": self._stop_a_worker,
            "the worker for workflows stopped beyond its task": lambda: self._stop("worker-orchestration"),
        }

    def reign(self, is_over: Callable[[], bool], *, rounds: int) -> None:
        """Do things until it is over, every kind so many times at most; at the end everything runs again."""
        try:
            while not is_over():
                self._sample()
                if self.done.total() < rounds * len(self.deeds):
                    self._next()
                time.sleep(self._seconds(*self.PAUSE_SECONDS))
        finally:
            self._over.set()
            self._doing.shutdown(wait=True)
            self._looking.shutdown(wait=True)
        for deed in self._begun:
            deed.result()

    def _next(self) -> None:
        # every kind comes before any comes again
        if not self._deck:
            self._deck = self._random.sample(sorted(self.deeds), len(self.deeds))
        name = self._deck.pop()
        self._begun.append(self._doing.submit(self.deeds[name]))
        self.done[name] += 1

    def _seconds(self, least: float, most: float) -> float:
        return self._random.uniform(least, most)

    def _sample(self) -> None:
        """Note what is durable now, unless Postgres is away."""
        url = self._up.addresses.postgres_url
        with suppress(psycopg.Error, PoolTimeout, AssayError):
            # a pool would wait for longer
            psycopg.connect(url, connect_timeout=2).close()
            answers = self._looking.submit(asyncio.run, durable_answers(url)).result()
            (moment,) = rows(url, "SELECT clock_timestamp() AS at")
            self.samples.append(Sample(moment["at"], answers))

    # --- the deeds ---

    def _aim(self, pid: Callable[[], int | None]) -> None:
        """Wait until calls are in flight at the process, or for so long."""
        deadline = time.monotonic() + AIM_SECONDS
        while time.monotonic() < deadline and not in_flight(calls_in(self._calls_log), pid() or 0):
            if self._over.wait(0.1):
                return

    def _kill_the_worker(self) -> None:
        self._aim(lambda: self._up.pids.get("worker-cognition"))
        self._kill("worker-cognition")

    def _kill_the_second(self) -> None:
        self._aim(lambda: self._second.process.pid)
        self._second.kill()

    def _kill(self, name: str) -> None:
        self._up.kill_child(name)

    def _flush(self) -> None:
        with Redis.from_url(self._up.addresses.redis_url) as redis:
            redis.flushall()

    def _cut(self, seconds: float) -> None:
        """End every connection, and let nobody in for so long."""
        server, _, database = self._up.addresses.postgres_url.rpartition("/")
        ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
        with self._door, psycopg.connect(f"{server}/postgres", autocommit=True) as admin:
            admin.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false".encode())
            try:
                deadline = time.monotonic() + seconds
                while time.monotonic() < deadline:
                    admin.execute(ending, [database])
                    time.sleep(0.05)
            finally:
                admin.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true".encode())

    def _stop_postgres(self, seconds: float) -> None:
        server = psutil.Process(self._up.pids["postgres"])
        with stopped(server, *server.children(recursive=True)):
            time.sleep(seconds)

    def _stop_a_worker(self) -> None:
        if self._random.random() < 1 / 2:
            self._aim(lambda: self._up.pids.get("worker-cognition"))
            self._stop("worker-cognition")
        else:
            self._aim(lambda: self._second.process.pid)
            self._stop_process(self._second.process.pid)

    def _stop(self, name: str) -> None:
        # none where it was killed a moment ago
        if (pid := self._up.pids.get(name)) is not None:
            self._stop_process(pid)

    def _stop_process(self, pid: int) -> None:
        with suppress(psutil.NoSuchProcess), stopped(psutil.Process(pid)):
            time.sleep(TIMEOUT_SECONDS + self._seconds(0.5, 2.5))


@contextmanager
def stopped(*processes: psutil.Process) -> Iterator[None]:
    """Let the processes stand still; who dies meanwhile is not missed."""
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            each.suspend()
    try:
        yield
    finally:
        for each in processes:
            with suppress(psutil.NoSuchProcess):
                each.resume()


# --- what came out -----------------------------------------------------------------------------------

DISPATCHES_SQL = """
SELECT split_part(j.step, '/', 1) AS file_id, split_part(j.step, '/', 3) AS question, f.occurred_at AS at
FROM ledger_facts f JOIN ledger_journal j USING (call_id) WHERE f.kind = 'dispatched' AND f.batch_id = %s
"""
EVENTS_SQL = """
SELECT call_id, event_type, cost_actual_nanodollars AS cost FROM ledger_events WHERE batch_id = %s
"""
STATES_SQL = "SELECT state, count(*) AS number FROM ledger_holds WHERE batch_id = %s GROUP BY state"
SAGAS_SQL = """
SELECT s.final_status, count(*) AS number FROM saga_transactions s
JOIN files f ON s.saga_id = f.id || '/g1/persist' WHERE f.batch_id = %s GROUP BY s.final_status
"""
TOLD_SQL = """
SELECT event_type || coalesce(' ' || (data ->> 'to'), '') AS told, count(*) AS number
FROM progress_events WHERE batch_id = %s AND file_id IS NOT NULL GROUP BY told
"""
ATTEMPTS_SQL = """
SELECT sum(t.epoch)::integer AS number FROM agent_threads t JOIN files f ON f.id = t.file_id
WHERE f.batch_id = %s
"""
ACCOUNT_SQL = """
SELECT spent_nanodollars AS spent, held_nanodollars AS held FROM ledger_accounts
WHERE scope = 'batch' AND subject = %s
"""
DOUBTS_SQL = "SELECT coalesce(sum(open_nanodollars), 0)::bigint AS open FROM ledger_holds WHERE batch_id = %s"
UNSETTLED_SQL = "SELECT 1 FROM ledger_holds WHERE batch_id = %s AND state IN ('held', 'dispatched') LIMIT 1"


@dataclass(frozen=True)
class Reckoning:
    """What a batch came to: the stores, the upstream's log and the API beside each other."""

    samples: list[Sample]
    calls: list[Row]
    holds: Counter[str]
    sagas: Counter[str]
    told: Counter[str]
    attempts: int
    events: list[Row]
    dispatches: list[Row]
    spent: int
    held: int
    in_doubt: int

    @classmethod
    def of(cls, up: Up, batch_id: str, chaos: Chaos, calls_log: Path) -> "Reckoning":
        """The batch's, once no call of it is under way."""
        url = up.addresses.postgres_url
        until(lambda: not rows(url, UNSETTLED_SQL, batch_id), "every call is settled or in doubt", 120)
        (account,) = rows(url, ACCOUNT_SQL, batch_id)
        return cls(
            samples=chaos.samples,
            calls=calls_in(calls_log),
            holds=_counted(rows(url, STATES_SQL, batch_id)),
            sagas=_counted(rows(url, SAGAS_SQL, batch_id)),
            told=_counted(rows(url, TOLD_SQL, batch_id)),
            attempts=rows(url, ATTEMPTS_SQL, batch_id)[0]["number"],
            events=rows(url, EVENTS_SQL, batch_id),
            dispatches=rows(url, DISPATCHES_SQL, batch_id),
            in_doubt=rows(url, DOUBTS_SQL, batch_id)[0]["open"],
            **account,
        )

    @property
    def begun(self) -> Counter[str]:
        """How often the upstream was asked each call."""
        return Counter(call["key"] for call in self.calls if call["event"] == "begun")

    @property
    def repeated(self) -> set[Answered]:
        """Answers that were paid for anew although they were durable."""
        return {
            answer
            for sample in self.samples
            for each in self.dispatches
            if each["at"] > sample.at and (answer := (each["file_id"], each["question"])) in sample.answers
        }

    def of_type(self, *event_types: str) -> list[Row]:
        """The ledger's events of these types."""
        return [each for each in self.events if each["event_type"] in event_types]

    def assert_sound(self, files: int) -> None:
        """Nothing lost, nothing repeated, nothing half, nothing paid twice."""
        answers = files * len(OPEN)
        assert self.told["StatusChanged completed"] == self.told["FileAssessed"] == files
        assert not self.told["StatusChanged needs_intervention"], "seconds without Postgres need no human"
        assert not self.told["AgentRestarted"], "a checkpoint was lost"
        assert not self.told["AssessmentRetracted"]
        assert self.sagas == {"completed": files}, "an orphan saga"
        assert self.attempts > files, "chaos met nothing in flight"
        assert max(len(sample.answers) for sample in self.samples) > answers / 2, "durable work was not seen"
        assert not self.repeated, "durable, and asked for again"
        assert len(self.begun) == answers
        self._assert_paid_once(answers)

    def _assert_paid_once(self, answers: int) -> None:
        commits = Counter(each["call_id"] for each in self.of_type("commit"))
        assert len(commits) == commits.total() == answers, "a call was paid twice, or not"
        assert self.holds["committed"] == answers
        assert set(self.holds) <= {"committed", "cancelled", "in_doubt", "adjusted"}, "a hold is open"
        # what the upstream saw was dispatched, and so is accounted for
        assert self.begun.total() <= len(self.dispatches) <= self.holds.total()
        assert sum(each["cost"] for each in self.of_type("commit", "adjust")) == self.spent
        assert self.held == self.in_doubt

    def assert_told(self, up: Up, client: ApiClient, batch_id: str) -> None:
        """The API, the report and the ledger's own audit say the same."""
        progress = patiently(lambda: client.get(f"/v1/batches/{batch_id}"))["progress"]
        assert _nanodollars(progress["spent_usd"]) == self.spent
        assert _nanodollars(progress["settling_usd"]) == self.held
        usage = client.report(batch_id)["usage"]
        assert _nanodollars(usage["cost_usd"]) == self.spent
        assert _nanodollars(usage["settling_usd"]) == self.held
        verified = json.loads(told(up, "ledger", "verify", "--json"))
        assert verified == {"events": len(self.events), "whole": True, "differences": []}


def _counted(found: list[Row]) -> Counter[str]:
    return Counter({next(iter(row.values())): row["number"] for row in found})


def _nanodollars(usd: str) -> int:
    return int(Decimal(usd) * 1_000_000_000)


def table_of(chaos: Chaos, reckoning: Reckoning, *, title: str, seconds: float) -> Table:
    """What was done, and what came out."""
    table = Table(title=title, title_justify="left")
    table.add_column("what was done, and what came out")
    table.add_column("number", justify="right")
    for name in sorted(chaos.deeds):
        table.add_row(name, str(chaos.done[name]))
    table.add_section()
    for name, value in _figures(reckoning).items():
        table.add_row(name, str(value))
    table.add_row("seconds from hand-in to the end", f"{seconds:.0f}")
    return table


def _figures(reckoning: Reckoning) -> dict[str, int | str]:
    told_of = reckoning.told
    return {
        "files completed, each once": told_of["StatusChanged completed"],
        "files that needed a human": told_of["StatusChanged needs_intervention"],
        "attempts of agents": reckoning.attempts,
        "moments at which durable answers were noted": len(reckoning.samples),
        "durable answers asked for again": len(reckoning.repeated),
        "calls that the upstream saw": reckoning.begun.total(),
        "answers, each committed once": len(reckoning.of_type("commit")),
        "calls cut off: in doubt still": reckoning.holds["in_doubt"],
        "calls cut off: settled late, by an adjust": reckoning.holds["adjusted"],
        "calls refused: cancelled": reckoning.holds["cancelled"],
        "most calls of one answer": max(reckoning.begun.values()),
        "sagas completed": reckoning.sagas["completed"],
        "nano-dollars spent = events = account = report": reckoning.spent,
    }
