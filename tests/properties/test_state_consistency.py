"""Property 1: the agent's state is one, wherever it is asked for."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import pytest
from hypothesis import strategies as st

from db.redis.progress import RedisStatePublisher
from domain.batch import AgentState, StoredFile
from domain.completion import CompletionRequest
from domain.identity import file_workflow_id
from gateway.scripted import Rule, Script
from runtime.resources import Resources
from tests.builders import a_submission, open_batch
from tests.properties.drawing import drawn
from tests.workflows.plant import (
    WatchedModel,
    agent_state,
    all_ended,
    answers_to,
    child_of,
    cognition,
    exam_of,
    files_of,
    names,
    orchestration,
    rules_for,
    running,
    start,
    with_worker_settings,
)

QUESTIONS = 3
IDS = [f"q{number + 1}" for number in range(QUESTIONS)]
LATEST_SQL = """
SELECT f.run_id, t.workflow_id, c.checkpoint_id, c.checkpoint -> 'channel_versions' ? 'total' AS done
FROM files f
JOIN agent_threads t ON t.thread_id = f.run_id
JOIN LATERAL (SELECT * FROM checkpoints WHERE thread_id = f.run_id AND checkpoint_ns = ''
              ORDER BY checkpoint_id DESC LIMIT 1) c ON true
WHERE f.id = %s
"""


@dataclass(frozen=True)
class Case:
    """A file's run: which questions' calls hang, and which first replies quote what is not there."""

    held: frozenset[str]
    repaired: frozenset[str]

    def holds(self, request: CompletionRequest) -> bool:
        """A question that is repaired hangs in its second call."""
        question = request.step.question_id
        return question in self.held and request.call_number == (2 if question in self.repaired else 1)


CASES = st.builds(
    Case,
    st.frozensets(st.sampled_from(IDS), min_size=1),
    st.frozensets(st.sampled_from(IDS)),
)


@pytest.mark.timeout(600)
async def test_the_query_the_thread_and_the_live_state_are_one_at_every_quiet_moment(
    resources: Resources, example: Callable[[], None]
) -> None:
    """
    **功能: architecture-deep-integration, 属性 1: 状态标识一致性**
    **验证: 需求 1.1, 1.5**

    The thread is the run of the file's workflow, and the query equals the latest state in Postgres, while a
    model call hangs and after the end.
    """
    cases = drawn(CASES)
    batch = await open_batch(
        resources,
        {name: a_submission(answers_to(QUESTIONS)) for name in names(len(cases))},
        exam=exam_of(QUESTIONS),
        max_concurrent=len(cases),
    )
    files = await files_of(resources, batch)
    by_file = {file.id: case for file, case in zip(files, cases, strict=True)}
    rules = [
        rule
        for file_id, case in by_file.items()
        for each in case.repaired
        for rule in rules_for(file_id, Rule(f"{each}/*/1", fail="bad_quote"))
    ]
    model = WatchedModel(Script(rules=tuple(rules)), lambda call: by_file[call.step.file_id].holds(call))
    async with running(orchestration(resources), cognition(resources, model)):
        await start(resources, batch)
        # repairs begin when every first reply is there: a file that hangs in first calls repairs later
        hanging = {id_: len(case.held - case.repaired) or len(case.held) for id_, case in by_file.items()}
        await model.is_holding(sum(hanging.values()))
        await asyncio.gather(*(_is_one(resources, file) for file in files))
        model.released.set()
        (ended,) = await all_ended(resources, batch)
        for state in await asyncio.gather(*(_is_one(resources, file) for file in files)):
            assert (state.stage, state.percentage) == ("done", 100.0)
            example()
    assert ended.state == "completed"


async def _is_one(resources: Resources, file: StoredFile) -> AgentState:
    """Wait for the interval, then compare; a busy server may be late, but never stays different."""
    deadline = time.monotonic() + 60
    while True:
        state = await agent_state(resources, file)
        workflow_id = file_workflow_id(file.batch_id, file.id, file.generation)
        live = await RedisStatePublisher(resources.redis).read(workflow_id)
        stored = await resources.postgres.row(LATEST_SQL, [file.id])
        if live is not None and stored is not None:
            run_id = (await child_of(resources, file).describe()).run_id
            assert {stored["run_id"], state.thread_id, live.thread_id} == {run_id}
            assert stored["workflow_id"] == file_workflow_id(file.batch_id, file.id, file.generation)
            if live == state and state.checkpoint_id == stored["checkpoint_id"]:
                assert (state.percentage == 100) == bool(stored["done"])
                return state
        assert time.monotonic() < deadline, f"query {state}, live {live}, stored {stored}"
        # a hundred ask at once
        await asyncio.sleep(0.2)


async def test_the_query_is_never_older_than_the_interval(resources: Resources) -> None:
    interval, allowance, questions = 0.5, 1.5, 12
    resources = with_worker_settings(resources, state_interval_seconds=interval, max_parallel_calls=1)
    batch = await open_batch(
        resources, {"a.json": a_submission(answers_to(questions))}, exam=exam_of(questions)
    )
    (file,) = await files_of(resources, batch)
    model = WatchedModel(Script(latency_seconds=0.4))
    asked: list[tuple[float, AgentState]] = []
    lived: list[tuple[float, AgentState]] = []
    async with running(orchestration(resources), cognition(resources, model)):
        await start(resources, batch)
        ending = asyncio.create_task(all_ended(resources, batch))
        while not ending.done():
            workflow_id = file_workflow_id(batch.id, file.id, file.generation)
            live = await RedisStatePublisher(resources.redis).read(workflow_id)
            if live is not None:
                lived.append((time.monotonic(), live))
                asked.append((time.monotonic(), await agent_state(resources, file)))
            await asyncio.sleep(0.05)
        await ending
    distinct = {state.percentage for _, state in asked}
    assert len(distinct) >= 4, "the query followed the run"
    for at, state in asked:
        known = [live for seen, live in lived if seen <= at - interval - allowance]
        assert all(_time(live) <= _time(state) for live in known[-1:]), (known[-1], state)


def _time(state: AgentState) -> datetime:
    return datetime.fromisoformat(state.updated_at)
