"""Checkpoints: our saver beside LangGraph's stock one, on the same grading graph and PostgreSQL in one run.

Shown for each run of the graph are the round trips to the server, the bytes stored, the bytes written to the
log of the database, and the time; then what a finished thread keeps before and after it is pruned. With our
saver the graph also hears what has happened outside before its steps, as it does in a worker.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ["LANGGRAPH_STRICT_MSGPACK"] = "true"  # as our workers have it; read at langgraph's import
if not __package__:  # run by its path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection
from psycopg.rows import DictRow
from psycopg_pool import AsyncConnectionPool
from rich.console import Console
from rich.table import Table

from agents.boundary import Boundary
from agents.grading.graph import GradingGraph, build_graph
from agents.grading.state import Context
from benchmarks.figures import machine
from benchmarks.material import ANSWER, exam_document
from db.postgres.checkpoints import FencedPostgresSaver
from db.postgres.external_events import PostgresOutside
from db.postgres.migrate import migrate
from db.postgres.pool import Postgres, open_pool
from domain.completion import Payer
from domain.exam import Exam, read_exam
from domain.identity import WorkflowRef
from gateway.scripted import ScriptedModel
from runtime.embedded import EmbeddedStack

QUESTIONS = 8
WARM_UP_RUNS = 5

TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
STORED_SQL = " UNION ALL ".join(
    f"SELECT sum(pg_column_size(t.*)) AS bytes FROM {table} t WHERE thread_id = ANY(%(threads)s)"  # noqa: S608  # constants
    for table in TABLES
)
LOGGED_SQL = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint AS bytes"

BATCH_SQL = """
WITH tenant AS (INSERT INTO tenants (id, name) VALUES ('benchmark', 'Benchmark') RETURNING id)
INSERT INTO batches (tenant_id, kind, model, status, expected_workers, max_concurrent, trace_id)
SELECT id, 'grading', 'scripted', 'scattering', 1, 1, 'none' FROM tenant RETURNING id
"""

Saver = AsyncPostgresSaver
OpenSaver = Callable[["Pool"], Saver]


class CountingConnection(AsyncConnection[DictRow]):
    """A connection that counts how often it waits for the server."""

    round_trips = 0

    async def wait(self, *arguments: Any, **options: Any) -> Any:
        """As any connection waits."""
        type(self).round_trips += 1
        return await super().wait(*arguments, **options)


#: of `CountingConnection`s; the savers want to hear of plain ones
Pool = AsyncConnectionPool[Any]


@dataclass(frozen=True)
class PerRun:
    """One run of the graph, on average."""

    round_trips: float
    stored_bytes: int
    logged_bytes: int
    milliseconds: float
    pruned_bytes: int


async def measure(runs: int, questions: int) -> dict[str, Any]:
    """Both savers in turn, on one server."""
    facts = machine()
    exam = _exam(questions)
    async with _installation() as pool:
        found = {
            "stock": await _measured(pool, exam, runs, AsyncPostgresSaver),
            "ours": await _measured(
                pool, exam, runs, lambda opened: FencedPostgresSaver(opened, 1), await _batch(pool)
            ),
        }
    stock, ours = found["stock"], found["ours"]
    ratios = {
        "round_trips": round(ours.round_trips / stock.round_trips, 2),
        "stored_bytes": round(ours.stored_bytes / stock.stored_bytes, 2),
        "logged_bytes": round(ours.logged_bytes / stock.logged_bytes, 2),
        "milliseconds": round(ours.milliseconds / stock.milliseconds, 2),
    }
    return {
        "questions": questions,
        "runs": runs,
        **{name: asdict(each) for name, each in found.items()},
        "ratio": ratios,
        "machine": facts,
    }


@asynccontextmanager
async def _installation() -> AsyncIterator[Pool]:
    with tempfile.TemporaryDirectory(prefix="assay-checkpoints-", ignore_cleanup_errors=True) as folder:
        async with EmbeddedStack(Path(folder) / "data") as stack:
            await migrate(stack.addresses.postgres_url)
            pool: Any = open_pool(
                stack.addresses.postgres_url,
                min_size=2,
                max_size=2,
                acquire_timeout_seconds=30,
                check_on_acquire=False,
            )
            pool.connection_class = CountingConnection
            await pool.open()
            try:
                yield pool
            finally:
                await pool.close()


def _exam(questions: int) -> Exam:
    documents = [exam_document(f"q{number}")["questions"][0] for number in range(questions)]
    return read_exam({"title": "So many questions", "questions": documents})


async def _batch(pool: Pool) -> str:
    async with pool.connection() as connection:
        row = await (await connection.execute(BATCH_SQL.encode())).fetchone()
        return str(row["id"])


async def _measured(
    pool: Pool, exam: Exam, runs: int, open_saver: OpenSaver, batch_id: str | None = None
) -> PerRun:
    graph = build_graph()
    for _ in range(WARM_UP_RUNS):
        await _run(graph, pool, exam, open_saver, batch_id)
    logged = await _number(pool, LOGGED_SQL)
    before, began = CountingConnection.round_trips, time.perf_counter()
    threads = [await _run(graph, pool, exam, open_saver, batch_id) for _ in range(runs)]
    seconds, trips = time.perf_counter() - began, CountingConnection.round_trips - before
    # the thread's own registration is no part of a save: one round trip a run
    trips -= runs
    logged = await _number(pool, LOGGED_SQL) - logged
    stored = await _number(pool, STORED_SQL, threads)
    await open_saver(pool).aprune(threads)
    return PerRun(
        round_trips=round(trips / runs, 1),
        stored_bytes=stored // runs,
        logged_bytes=logged // runs,
        milliseconds=round(seconds / runs * 1000, 1),
        pruned_bytes=await _number(pool, STORED_SQL, threads) // runs,
    )


async def _number(pool: Pool, sql: str, threads: list[str] | None = None) -> int:
    async with pool.connection() as connection:
        cursor = await connection.execute(sql.encode(), {"threads": threads})
        return sum(int(row["bytes"] or 0) for row in await cursor.fetchall())


async def _run(
    graph: GradingGraph, pool: Pool, exam: Exam, open_saver: OpenSaver, batch_id: str | None
) -> str:
    """One run; with a batch it hears what happens outside. Answers the thread."""
    thread_id = str(uuid.uuid4())
    async with pool.connection() as connection:
        await connection.execute(
            "INSERT INTO agent_threads (thread_id, workflow_id) VALUES (%s, 'benchmark')", [thread_id]
        )
    context = Context(
        exam=exam,
        answers=dict.fromkeys((question.id for question in exam.questions), ANSWER),
        models=ScriptedModel(),
        model="scripted",
        file_id=thread_id,
        generation=1,
        slots=asyncio.Semaphore(8),
        payer=Payer(),
        secret=b"benchmark",
        boundary=Boundary(PostgresOutside(Postgres(pool)), WorkflowRef(batch_id, thread_id))
        if batch_id
        else Boundary(),
    )
    config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
    state = await graph.copy({"checkpointer": open_saver(pool)}).ainvoke(
        {"exam_id": exam.id, "rubric_version": exam.rubric_version, "model": "scripted"},
        config,
        context=context,
        durability="sync",
    )
    assert state["total"]["score"] == state["total"]["max_score"]
    return thread_id


def show(figures: dict[str, Any], console: Console) -> None:
    """The figures for people."""
    table = Table("a run", "stock saver", "ours", "ratio", box=None)
    for name, ratio in figures["ratio"].items():
        table.add_row(
            name.replace("_", " "), f"{figures['stock'][name]:,}", f"{figures['ours'][name]:,}", f"{ratio}"
        )
    stored, pruned = figures["ours"]["stored_bytes"], figures["ours"]["pruned_bytes"]
    console.print(table)
    console.print(f"A finished thread keeps {stored:,} bytes, and {pruned:,} once it is pruned.")


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoints", description=__doc__)
    parser.add_argument("--runs", type=int, default=50, help="of the graph, with each saver")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="open questions of the exam")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args()
    figures = asyncio.run(measure(options.runs, options.questions))
    if options.json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    else:
        show(figures, Console())


if __name__ == "__main__":
    main()
