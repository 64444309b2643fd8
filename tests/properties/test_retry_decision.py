"""Property 3: a valid checkpoint resumes, an absent or corrupt one starts afresh and says so."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
from hypothesis import strategies as st

from domain.batch import StoredFile
from domain.completion import CompletionRequest
from domain.ledger import Ledger, LedgerCall
from gateway.scripted import Rule, Script
from runtime.resources import Resources
from tests.builders import a_submission, open_batch
from tests.properties.drawing import drawn
from tests.workflows.plant import (
    WatchedModel,
    all_ended,
    answers_to,
    cognition,
    exam_of,
    file_events,
    files_of,
    names,
    orchestration,
    rules_for,
    running,
    start,
    with_worker_settings,
)

QUESTIONS = 4
IDS = [f"q{number + 1}" for number in range(QUESTIONS)]

Damage = Literal[
    "none", "flipped plan", "flipped results", "flipped write", "lost plan", "lost results", "absent"
]

BLOB = """
(thread_id, checkpoint_ns, channel, version) = (
    SELECT thread_id, checkpoint_ns, %(channel)s, checkpoint -> 'channel_versions' ->> %(channel)s
    FROM checkpoints WHERE thread_id = %(thread_id)s ORDER BY checkpoint_id DESC LIMIT 1)
"""
FLIPPED = "set_byte(blob, length(blob) - 1, get_byte(blob, length(blob) - 1) # 255)"
FLIP_BLOB_SQL = f"UPDATE checkpoint_blobs SET blob = {FLIPPED} WHERE {BLOB}"  # noqa: S608  # constants
LOSE_BLOB_SQL = f"DELETE FROM checkpoint_blobs WHERE {BLOB}"  # noqa: S608  # constants
FLIP_WRITE_SQL = """
UPDATE checkpoint_writes SET blob = set_byte(blob, length(blob) - 1, get_byte(blob, length(blob) - 1) # 255)
WHERE (thread_id, checkpoint_id, task_id, idx) = (
    SELECT w.thread_id, w.checkpoint_id, w.task_id, w.idx FROM checkpoint_writes w
    JOIN (SELECT checkpoint_id FROM checkpoints WHERE thread_id = %(thread_id)s
          ORDER BY checkpoint_id DESC LIMIT 1) last USING (checkpoint_id)
    WHERE w.thread_id = %(thread_id)s AND w.channel = 'results' LIMIT 1)
"""
FINISHED_SQL = """
SELECT count(*) AS finished FROM checkpoint_writes w
JOIN (SELECT checkpoint_id FROM checkpoints WHERE thread_id = %(thread_id)s
      ORDER BY checkpoint_id DESC LIMIT 1) last USING (checkpoint_id)
WHERE w.thread_id = %(thread_id)s AND w.channel = 'results'
"""


@dataclass(frozen=True)
class Case:
    """A first attempt that dies in a call, and what becomes of its checkpoint before the second."""

    #: questions whose calls have returned; with all of them there, it dies in the repair of the last
    finished: int
    damage: Damage

    @property
    def repairs(self) -> bool:
        """Whether the first attempt came as far as a repair."""
        return self.finished == QUESTIONS

    def holds(self, request: CompletionRequest) -> bool:
        """The call in which the first attempt dies."""
        if self.repairs:
            return request.call_number == 2
        return request.step.question_id == IDS[self.finished]

    @property
    def restarts(self) -> bool:
        """Whether the thread starts afresh."""
        return self.damage != "none"

    def calls(self) -> dict[str, int]:
        """How often the second attempt asks about each question; the reply that is repaired comes first."""
        if self.restarts:
            return {each: 2 if self.repairs and each == IDS[-1] else 1 for each in IDS}
        return self.unanswered()

    def unanswered(self) -> dict[str, int]:
        """How often the model itself is asked: what it has answered stands in the journal."""
        return {IDS[-1]: 1} if self.repairs else dict.fromkeys(IDS[self.finished :], 1)


class AskedLedger:
    """A ledger that remembers which calls were begun."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._asked: set[tuple[str, int]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def begin(self, call: LedgerCall, **options: Any) -> Any:
        """As the ledger's own."""
        self._asked.add((call.key.step, call.key.number))
        return await self._ledger.begin(call, **options)

    def calls(self, file_id: str, question_id: str) -> int:
        """How many different calls were begun for that question."""
        return sum(1 for step, _ in self._asked if step.startswith(f"{file_id}/g1/{question_id}/"))


def _cases() -> st.SearchStrategy[Case]:
    damages = st.sampled_from(
        ["none", "none", "flipped plan", "flipped results", "lost plan", "lost results", "absent"]
    )
    # a write of a finished question can be damaged where there is one
    in_writes = st.builds(Case, st.integers(1, QUESTIONS - 1), st.just("flipped write"))
    return st.builds(Case, st.integers(0, QUESTIONS), damages) | in_writes


@pytest.mark.timeout(600)
async def test_a_valid_checkpoint_resumes_and_any_other_starts_afresh(
    resources: Resources, example: Callable[[], None]
) -> None:
    """
    **功能: architecture-deep-integration, 属性 3: 重试策略决策正确性**
    **验证: 需求 1.4**

    After a failed attempt no finished question is asked about again, unless its checkpoint is damaged; and
    then it is answered from the journal: no model sees a question again that it has answered.
    """
    resources = with_worker_settings(resources, max_parallel_calls=1, shutdown_seconds=0)
    cases = drawn(_cases())
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
        if case.repairs
        for rule in rules_for(file_id, Rule(f"{IDS[-1]}/*/1", fail="bad_quote"))
    ]
    script = Script(rules=tuple(rules))
    first = WatchedModel(script, lambda call: by_file[call.step.file_id].holds(call))
    second = WatchedModel(script)
    ledger = AskedLedger(resources.ledger)
    async with running(orchestration(resources)):
        async with running(cognition(resources, first)):
            await start(resources, batch)
            await first.is_holding(len(cases))
            files = await files_of(resources, batch)
            for file in files:
                await _is_stored(resources, file, by_file[file.id])
        for file in files:
            await _damage(resources, file.run_id or "", by_file[file.id].damage)
        async with running(cognition(replace(resources, ledger=ledger), second)):
            (ended,) = await all_ended(resources, batch)
    assert ended.state == "completed"
    restarted = [
        file_id for file_id, kind, _ in await file_events(resources, batch) if kind == "AgentRestarted"
    ]
    for file_id, case in by_file.items():
        asked = {each: ledger.calls(file_id, each) for each in IDS}
        assert {each: calls for each, calls in asked.items() if calls} == case.calls(), case
        paid = {each: _calls(second, file_id, each) for each in IDS}
        assert {each: calls for each, calls in paid.items() if calls} == case.unanswered(), case
        assert restarted.count(file_id) == (case.restarts and case.damage != "absent"), case
        example()


def _calls(model: WatchedModel, file_id: str, question_id: str) -> int:
    return sum(n for key, n in model.begun.items() if key.startswith(f"{file_id}/g1/{question_id}/"))


async def _is_stored(resources: Resources, file: StoredFile, case: Case) -> None:
    """Wait until the finished questions are durable: before that they may be asked about again."""
    expected = 0 if case.repairs else case.finished
    async with asyncio.timeout(60):
        while True:
            row = await resources.postgres.row(FINISHED_SQL, {"thread_id": file.run_id})
            if row is not None and row["finished"] == expected:
                return
            await asyncio.sleep(0.05)


async def _damage(resources: Resources, thread_id: str, damage: Damage) -> None:
    how, _, channel = damage.partition(" ")
    parameters = {"thread_id": thread_id, "channel": channel}
    if damage == "absent":
        for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes"):
            await resources.postgres.run(f"DELETE FROM {table} WHERE thread_id = %s", [thread_id])  # noqa: S608  # one of three
    elif damage == "flipped write":
        assert await resources.postgres.run(FLIP_WRITE_SQL, parameters) == 1
    elif damage != "none":
        sql = FLIP_BLOB_SQL if how == "flipped" else LOSE_BLOB_SQL
        assert await resources.postgres.run(sql, parameters) == 1, damage
