"""Property 25: commands in any order make legal moves only, each told once."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from db.postgres.batches import PostgresBatches, PostgresBatchRuns
from db.postgres.diagnoses import PostgresDiagnoses, PostgresDiagnosisThreads
from db.postgres.grading import PostgresAssessments, PostgresSubmissions, PostgresThreads
from db.postgres.logs import PostgresLogs
from db.postgres.pool import Postgres
from db.postgres.reruns import PostgresReruns
from domain.batch import Batch, BatchKind
from domain.diagnosis import Diagnosis, DiagnosisStart, RiskLevel, Verdict
from domain.errors import Conflict, EpochSuperseded, SagaStepRefused
from domain.exam import Exam
from domain.logs import LogStart
from domain.states import BATCH_MACHINE, FILE_MACHINE, BatchState, FileState
from tests.db.stage import (
    a_start,
    add_files,
    an_assessment,
    an_upload,
    opened_postgres,
    pending_batch,
    record_log,
    stored_exam,
)

_FILES = 2
#: in the order that a good run gives them, so that a drawn sequence often gets far
COMMANDS = (
    "add",
    "complete",
    "scatter",
    "queue",
    "begin",
    "grade",
    "fail",
    "cancel_file",
    "barrier",
    "gather",
    "diagnose",
    "conclude",
    "finish",
    "cancel_batch",
    "fail_batch",
    "withdraw",
    "rerun",
)
GOOD = ("complete", "scatter", "queue", "begin", "grade", "fail", "barrier", "gather", "finish")
#: after a good run, which ends in part
AGAIN = ("rerun", "begin", "fail", "barrier", "gather", "finish")
#: by kind of batch
PATHS = {
    BatchKind.GRADING: (GOOD, AGAIN),
    BatchKind.DIAGNOSIS: (
        (*GOOD[:-1], "diagnose", "conclude", "finish"),
        (*AGAIN[:-1], "diagnose", "conclude", "finish"),
    ),
}
_LONGEST = len(sum(PATHS[BatchKind.DIAGNOSIS], ()))
STEP = st.lists(st.sampled_from(COMMANDS), min_size=1, max_size=3)
#: a good run up to a drawn step, with any commands, several at once, between and after its steps
RUNS = st.tuples(
    st.sampled_from(BatchKind),
    st.integers(0, _LONGEST),
    st.lists(st.tuples(st.integers(0, _LONGEST), STEP), max_size=4),
)

#: where files may still be open
_OPEN = {BatchState.PENDING, BatchState.UPLOADED, BatchState.SCATTERING, BatchState.PAUSED}

STATE_SQL = """
SELECT (SELECT to_jsonb(b) FROM batches b WHERE id = %(id)s) AS batch,
       (SELECT jsonb_agg(to_jsonb(f) ORDER BY f.name) FROM files f WHERE batch_id = %(id)s) AS files,
       (SELECT jsonb_agg(to_jsonb(s) ORDER BY id) FROM submissions s WHERE batch_id = %(id)s) AS submissions,
       -- without the numbers: a relay may be at work
       (SELECT jsonb_agg(to_jsonb(e) - 'number' ORDER BY e.id)
        FROM progress_events e WHERE batch_id = %(id)s) AS events
"""


@dataclass
class Machine:
    """One batch and every command that may be given about it."""

    postgres: Postgres = field(repr=False)
    exam: Exam = field(repr=False)
    batch: Batch
    file_ids: list[str]

    async def give(self, command: str) -> bool:
        """Give the command; whether it was accepted."""
        try:
            await self._commands()[command]()
        except (Conflict, EpochSuperseded, SagaStepRefused):
            return False
        return True

    def _commands(self) -> dict[str, Callable[[], Coroutine[Any, Any, object]]]:
        batches, runs = PostgresBatches(self.postgres), PostgresBatchRuns(self.postgres)
        one, other = self.file_ids
        batch_id = self.batch.id
        return {
            "add": lambda: batches.add_file("local", batch_id, an_upload("000.md"), overwrite=False),
            "complete": lambda: batches.complete("local", batch_id),
            "scatter": lambda: runs.begin_scattering(batch_id),
            "queue": lambda: runs.queue_window(batch_id, 1, _FILES),
            "begin": lambda: self._begin_both(),
            "grade": lambda: self._grade(one),
            "fail": lambda: self._fail(other),
            "cancel_file": lambda: self._cancel(one),
            "barrier": lambda: runs.open_barrier(batch_id),
            "gather": lambda: runs.gather(batch_id),
            "diagnose": lambda: self._diagnose(),
            "conclude": lambda: self._conclude(),
            "finish": lambda: runs.finish(batch_id),
            "cancel_batch": lambda: self._end_early(BatchState.CANCELLED),
            "fail_batch": lambda: self._end_early(BatchState.FAILED),
            "withdraw": lambda: batches.cancel_before_start("local", batch_id),
            "rerun": lambda: PostgresReruns(self.postgres).retry_failed("local", batch_id),
        }

    @property
    def _of_logs(self) -> bool:
        return self.batch.opening.kind is BatchKind.DIAGNOSIS

    async def _diagnose(self) -> None:
        if not self._of_logs:
            raise Conflict("Only a batch of logs is diagnosed.")
        await PostgresBatchRuns(self.postgres).begin_diagnosing(self.batch.id)

    async def _conclude(self) -> None:
        batch_id = self.batch.id
        generation = (await PostgresBatches(self.postgres).read("local", batch_id)).generation
        start = DiagnosisStart(batch_id, generation, f"{batch_id}-run-{generation}", "diagnosis", "run")
        epoch = await PostgresDiagnosisThreads(self.postgres).begin(start)
        if epoch is None:
            raise SagaStepRefused("The batch is over.")
        diagnoses = PostgresDiagnoses(self.postgres)
        found = Diagnosis(Verdict.UNREMARKABLE, "Nothing.", RiskLevel.NONE, "nothing stands out")
        await diagnoses.propose(batch_id, generation, start.thread_id, epoch, found)
        await diagnoses.record(batch_id, generation, start.thread_id)
        await diagnoses.publish(batch_id, generation)

    async def _end_early(self, target: BatchState) -> None:
        generation = (await PostgresBatches(self.postgres).read("local", self.batch.id)).generation
        await PostgresBatchRuns(self.postgres).end_early(
            self.batch.id, target, "defect", generation=generation
        )

    async def _generation(self, file_id: str) -> int:
        return (await PostgresBatches(self.postgres).submission("local", file_id)).generation

    async def _fail(self, file_id: str) -> None:
        generation = await self._generation(file_id)
        await PostgresAssessments(self.postgres).fail(file_id, generation, "broken", "It broke.")

    async def _cancel(self, file_id: str) -> None:
        await PostgresAssessments(self.postgres).cancel(file_id, await self._generation(file_id))

    async def _begin_both(self) -> None:
        for file_id in self.file_ids:
            await self._begin(file_id, await self._generation(file_id))

    async def _begin(self, file_id: str, generation: int) -> tuple[str, int | None]:
        if self._of_logs:
            await PostgresLogs(self.postgres).begin(LogStart(file_id, generation, "log", "run", "run"))
            return "run", 1
        start = a_start(file_id, thread_id=f"{file_id}-run-{generation}", generation=generation)
        return start.thread_id, await PostgresThreads(self.postgres).begin(start)

    async def _grade(self, file_id: str) -> None:
        generation = await self._generation(file_id)
        if self._of_logs:
            await record_log(self.postgres, file_id, generation)
            return
        thread_id, epoch = await self._begin(file_id, generation)
        if epoch is None:
            raise SagaStepRefused("The file is not open.")
        await PostgresSubmissions(self.postgres).propose(
            file_id, generation, thread_id, epoch, an_assessment(self.exam)
        )
        saga = PostgresAssessments(self.postgres)
        await saga.record(file_id, generation, thread_id)
        await saga.finish(file_id, generation)

    async def read(self) -> dict[str, Any]:
        row = await self.postgres.row(STATE_SQL, {"id": self.batch.id})
        assert row is not None
        return row

    def check(self, now: dict[str, Any]) -> None:
        """Every move that the events tell is in its table, and they tell all moves, each once."""
        batch = now["batch"]
        moves = _moves(now["events"])
        walked = _walk("batch", moves.get(None, []), BATCH_MACHINE.initial)
        assert walked == batch["status"]
        for file in now["files"]:
            walked = _walk("file", moves.get(file["id"], []), FILE_MACHINE.initial)
            assert walked == file["state"]
        if batch["status"] in BATCH_MACHINE.final:
            assert {file["state"] for file in now["files"]} <= FILE_MACHINE.final
        assert {file["generation"] for file in now["files"]} <= set(range(1, batch["generation"] + 1))
        kinds = [each["event_type"] for each in now["events"]]
        for once in ("BatchCreated", "UploadCompleted"):
            assert kinds.count(once) <= 1
        for each in ("AllFilesScattered", "AllFilesGathered", "DiagnosisCompleted", "ReportReady"):
            assert kinds.count(each) <= batch["generation"]
        assessed = {each["file_id"] for each in now["events"] if each["event_type"] == "FileAssessed"}
        assert assessed == {s["id"] for s in now["submissions"] or [] if s["status"] == "graded"}
        parsed = [each["file_id"] for each in now["events"] if each["event_type"] == "FileParsed"]
        completed = [file["id"] for file in now["files"] if file["state"] == "completed"]
        assert sorted(parsed) == (sorted(completed) if self._of_logs else [])


def _moves(events: list[dict[str, Any]]) -> dict[str | None, list[tuple[str, str]]]:
    found: dict[str | None, list[tuple[str, str]]] = {}
    for event in events:
        if event["event_type"] == "StatusChanged":
            data = event["data"]
            assert (data["machine"] == "file") == (event["file_id"] is not None)
            found.setdefault(event["file_id"], []).append((data["from"], data["to"]))
        elif event["event_type"] == "FileScattered":
            # the move to `queued` has an event of its own name
            found.setdefault(event["file_id"], []).append(("uploaded", "queued"))
    return found


def _walk(machine: str, moves: list[tuple[str, str]], at: str) -> str:
    table = BATCH_MACHINE if machine == "batch" else FILE_MACHINE
    kind = BatchState if machine == "batch" else FileState
    for origin, target in moves:
        assert origin == at, f"the {machine} moved from {origin}, but was {at}"
        rerun = kind(origin) in table.final and target == table.rerun
        assert rerun or table.allows(kind(origin), kind(target)), f"{origin} → {target}"  # type: ignore[arg-type]
        at = target
    return at


@pytest.fixture(scope="module")
async def postgres(session_database_url: str) -> AsyncIterator[Postgres]:
    async with opened_postgres(session_database_url) as opened:
        yield opened


@pytest.fixture(scope="module")
async def exam(postgres: Postgres) -> Exam:
    return await stored_exam(postgres)


async def a_machine(postgres: Postgres, exam: Exam, kind: BatchKind = BatchKind.GRADING) -> Machine:
    batch = await pending_batch(postgres, exam, kind=kind)
    files = await add_files(postgres, batch, [f"{n:03}.md" for n in range(_FILES)])
    return Machine(postgres, exam, batch, files)


@settings(max_examples=100)
@given(run=RUNS)
async def test_commands_make_legal_moves_only_and_each_is_told_once(
    postgres: Postgres, exam: Exam, run: tuple[BatchKind, int, list[tuple[int, list[str]]]]
) -> None:
    """
    **功能: assay, 属性 25: 批次状态机**
    **验证: 需求 B5**

    For every sequence of commands, repeated and at once, batch and files make legal moves only,
    each with exactly one event, and a command that is refused changes nothing.
    """
    kind, good, strays = run
    machine = await a_machine(postgres, exam, kind)
    path = sum(PATHS[kind], ())
    steps = [(place, [command]) for place, command in enumerate(path[:good])] + strays
    before = await machine.read()
    for _, commands in sorted(steps, key=lambda step: step[0]):
        accepted = await asyncio.gather(*map(machine.give, commands))
        now = await machine.read()
        machine.check(now)
        if not any(accepted) and "grade" not in commands:
            assert now == before
        before = now


@pytest.mark.parametrize("kind", BatchKind)
async def test_a_good_run_walks_the_whole_path(postgres: Postgres, exam: Exam, kind: BatchKind) -> None:
    machine = await a_machine(postgres, exam, kind)
    good, again = PATHS[kind]
    diagnosed = ["diagnosing"] if kind is BatchKind.DIAGNOSIS else []
    for command in good:
        assert await machine.give(command), command
        # a repetition is accepted, and moves nothing
        before = await machine.read()
        assert await machine.give(command) or command == "grade"
        after = await machine.read()
        assert _moves(after["events"]) == _moves(before["events"])
    batch_moves = _moves((await machine.read())["events"])[None]
    assert [target for _, target in batch_moves] == [
        "uploaded", "scattering", "scattered", "gathering", "gathered", *diagnosed, "partial",
    ]  # fmt: skip
    for command in again:
        assert await machine.give(command), command
        assert command == "finish" or not await machine.give("rerun"), "not before it has ended again"
    batch_moves = _moves((await machine.read())["events"])[None]
    assert [target for _, target in batch_moves[6 + len(diagnosed) :]] == [
        "scattering", "scattered", "gathering", "gathered", *diagnosed, "partial",
    ]  # fmt: skip


@pytest.mark.parametrize("state", list(BatchState))
async def test_a_batch_command_in_any_state_moves_along_the_table_or_changes_nothing(
    postgres: Postgres, exam: Exam, state: BatchState
) -> None:
    """Every state, the ones of other kinds of batches included, against every command."""
    commands = ("scatter", "barrier", "gather", "finish", "cancel_batch", "fail_batch", "withdraw", "rerun")
    for command in commands:
        machine = await a_machine(postgres, exam)
        await machine.give("complete")
        await machine.postgres.run("UPDATE batches SET status = %s WHERE id = %s", [state, machine.batch.id])
        if state not in _OPEN:
            await machine.postgres.run(
                "UPDATE files SET state = 'failed' WHERE batch_id = %s", [machine.batch.id]
            )
        before = await machine.read()
        accepted = await machine.give(command)
        after = await machine.read()
        told = _moves(after["events"][len(before["events"]) :]).get(None, [])
        assert _walk("batch", told, state) == after["batch"]["status"]
        if not accepted:
            assert after == before
        if after["batch"]["status"] in BATCH_MACHINE.final - {state}:
            assert {file["state"] for file in after["files"]} <= FILE_MACHINE.final, command


def test_the_good_run_is_a_path_of_the_table() -> None:
    path = ["pending", "uploaded", "scattering", "scattered", "gathering", "gathered", "completed"]
    assert [key for key, _ in groupby(path)] == path
    for origin, target in pairwise(path):
        assert BATCH_MACHINE.allows(BatchState(origin), BatchState(target))
