"""The peer: the same grading graph in plain LangGraph with its stock Postgres saver, without Temporal.

As its manual shows it: the defaults of graph and saver, and (what is faster) a saver for each run over
one pool. It grades answers that it has in memory, and keeps nothing but its checkpoints.

Prints one JSON object. The database's address comes in PLAIN_POSTGRES_URL.
"""

import argparse
import asyncio
import json
import os
import resource
import sys
import time
import uuid
from pathlib import Path
from typing import Any

os.environ["LANGGRAPH_STRICT_MSGPACK"] = "true"  # as our workers have it; read at langgraph's import
if not __package__:  # run by its path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from agents.grading.graph import GradingGraph, build_graph
from agents.grading.state import Context
from benchmarks.material import ANSWER, INSTANT, exam_document
from domain.completion import Payer
from domain.exam import read_exam
from gateway.scripted import ScriptedModel
from runtime.settings import PostgresSettings, WorkerSettings

Pool = AsyncConnectionPool[AsyncConnection[DictRow]]


async def measure(url: str, runs: int, concurrent: int, warm_up: int) -> dict[str, Any]:
    """Run the graph so many times, so many at once, after a warm-up."""
    size = PostgresSettings().max_size
    options: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    pool: Pool = AsyncConnectionPool(url, min_size=size, max_size=size, kwargs=options, open=False)
    async with pool:
        await pool.wait()
        await AsyncPostgresSaver(pool).setup()
        graph = build_graph()
        await _run_all(graph, pool, warm_up, concurrent)
        began, cpu = time.perf_counter(), _cpu_seconds()
        await _run_all(graph, pool, runs, concurrent)
        seconds = time.perf_counter() - began
        return {"runs": runs, "seconds": seconds, "cpu_seconds": _cpu_seconds() - cpu}


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def _run_all(graph: GradingGraph, pool: Pool, runs: int, concurrent: int) -> None:
    slots = asyncio.Semaphore(concurrent)
    model = ScriptedModel()

    async def run() -> None:
        async with slots:
            await _run(graph.copy({"checkpointer": AsyncPostgresSaver(pool)}), model)

    async with asyncio.TaskGroup() as group:
        for _ in range(runs):
            group.create_task(run())


async def _run(graph: GradingGraph, model: ScriptedModel) -> None:
    exam = read_exam(exam_document(INSTANT))
    context = Context(
        exam=exam,
        answers={INSTANT: ANSWER},
        models=model,
        model="scripted",
        file_id=str(uuid.uuid4()),
        generation=1,
        slots=asyncio.Semaphore(WorkerSettings().max_parallel_calls),
        payer=Payer(),
        secret=b"benchmark",
    )
    config: RunnableConfig = {"configurable": {"thread_id": context.file_id}}
    state = await graph.ainvoke(
        {"exam_id": exam.id, "rubric_version": exam.rubric_version, "model": "scripted"},
        config,
        context=context,
    )
    assert state["total"]["score"] == exam.questions[0].points


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--concurrent", type=int, default=50)
    parser.add_argument("--warm-up", type=int, default=20)
    given = parser.parse_args()
    url = os.environ["PLAIN_POSTGRES_URL"]
    measured = asyncio.run(measure(url, given.runs, given.concurrent, given.warm_up))
    sys.stdout.write(json.dumps(measured) + "\n")


if __name__ == "__main__":
    main()
