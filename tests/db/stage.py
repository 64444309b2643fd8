"""Batches and files brought to a given state through the stores themselves."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg

from db.postgres.batches import PostgresBatches, PostgresBatchRuns
from db.postgres.exams import PostgresExams
from db.postgres.grading import PostgresSubmissions, PostgresThreads
from db.postgres.logs import PostgresLogs
from db.postgres.pool import Postgres, open_pool
from db.postgres.tenants import PostgresKeys
from domain.assessment import Assessment, CriterionResult, QuestionResult
from domain.batch import Batch, BatchKind, BatchOpening
from domain.exam import Exam, read_exam
from domain.logs import KeptLog, LogFormat, LogStart, ParsedLog
from domain.ports import AssessmentStart, Upload
from runtime.embedded import Binaries, Ports, Secrets, ValkeyServer
from runtime.processes import ProcessRecord
from tests.builders import EXAM

#: by which the connections of these pools are told from other tests' workers
_NAME = "stage"


@asynccontextmanager
async def opened_postgres(url: str, **options: Any) -> Any:
    """A pool of this test's own."""
    settings: dict[str, Any] = {
        "min_size": 1,
        "max_size": 20,
        "acquire_timeout_seconds": 5.0,
        "check_on_acquire": False,
        "name": _NAME,
        **options,
    }
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        # nothing here outlives a crash of the server: a commit need not wait for the disk
        name = connection.info.dbname
        # processes that open the same database at once would meet each other in its row of the catalogue
        await connection.execute("SELECT pg_advisory_lock(1)")
        await connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off".encode())
    pool = open_pool(url, **settings)
    await pool.open()
    try:
        yield Postgres(pool)
    finally:
        await pool.close()


@asynccontextmanager
async def own_valkey(folder: Path) -> Any:
    """A Valkey server that a test may stop, freeze and fill; answers the server itself."""
    folder.mkdir(mode=0o700)
    ports, passwords = Ports.open(folder), Secrets("unused", "throw-away")
    record = ProcessRecord(folder / "processes.json")
    server = ValkeyServer(folder, Binaries.locate(), passwords, ports, record)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def stored_exam(
    postgres: Postgres, tenant_id: str = "local", document: Mapping[str, Any] = EXAM
) -> Exam:
    """An exam of the tenant, who is made where needed."""
    await PostgresKeys(postgres).ensure(tenant_id, tenant_id, "test", f"assay_stage_{tenant_id}")
    return await PostgresExams(postgres).create(tenant_id, read_exam(document), str(uuid4()))


async def pending_batch(
    postgres: Postgres, exam: Exam | None = None, tenant_id: str = "local", **opening: Any
) -> Batch:
    """A batch that takes files; one of logs where its kind says so."""
    exam = exam or await stored_exam(postgres, tenant_id)
    kind = opening.pop("kind", BatchKind.GRADING)
    wanted = BatchOpening(kind, exam_id=exam.id if kind is BatchKind.GRADING else None, **opening)
    return await PostgresBatches(postgres).open(tenant_id, wanted, "0" * 32, str(uuid4()))


def an_upload(name: str, content: str = "content", **fields: Any) -> Upload:
    """What is to be written of a file with this content."""
    file_id, digest = str(uuid4()), hashlib.sha256(content.encode()).hexdigest()
    return Upload(file_id, name, f"objects/{file_id}/{digest}", len(content), digest, **fields)


async def add_files(postgres: Postgres, batch: Batch, names: Sequence[str]) -> list[str]:
    """Files of these names; answers their ids."""
    batches = PostgresBatches(postgres)
    return [
        (await batches.add_file(batch.tenant_id, batch.id, an_upload(name), overwrite=False)).file.id
        for name in names
    ]


async def scattered_files(
    postgres: Postgres, count: int, exam: Exam | None = None, tenant_id: str = "local", **opening: Any
) -> tuple[Batch, list[str]]:
    """A batch in `scattering` whose files are queued; answers it and the files' ids."""
    batch = await pending_batch(postgres, exam, tenant_id, **opening)
    file_ids = await add_files(postgres, batch, [f"{n:03}.md" for n in range(count)])
    await PostgresBatches(postgres).complete(tenant_id, batch.id)
    runs = PostgresBatchRuns(postgres)
    await runs.begin_scattering(batch.id)
    await runs.queue_window(batch.id, 1, count)
    return batch, file_ids


@dataclass(frozen=True)
class RunningFile:
    """A file that an attempt is at work on."""

    batch_id: str
    file_id: str
    thread_id: str
    epoch: int


def a_start(file_id: str, thread_id: str | None = None, generation: int = 1) -> AssessmentStart:
    """An attempt on a thread of its own, unless one is named."""
    thread_id = thread_id or str(uuid4())
    return AssessmentStart(file_id, generation, thread_id, f"file/{file_id}", thread_id)


async def running_file(postgres: Postgres, exam: Exam | None = None) -> RunningFile:
    """A batch of one file, which is running."""
    batch, (file_id,) = await scattered_files(postgres, 1, exam)
    start = a_start(file_id)
    epoch = await PostgresThreads(postgres).begin(start)
    assert epoch is not None
    return RunningFile(batch.id, file_id, start.thread_id, epoch)


async def record_log(postgres: Postgres, file_id: str, generation: int = 1) -> None:
    """The log parsed: begun, and what was found recorded."""
    logs = PostgresLogs(postgres)
    await logs.begin(LogStart(file_id, generation, f"file/{file_id}", "run", "run"))
    parsed = ParsedLog(
        LogFormat.TEXT, size_bytes=8, expanded_bytes=8, lines=2, parsed_lines=2, parser="stage"
    )
    await logs.record(file_id, generation, KeptLog(f"parsed/{file_id}", "0" * 64), parsed)


async def proposed_file(postgres: Postgres, exam: Exam) -> RunningFile:
    """A running file whose assessment waits to become official."""
    file = await running_file(postgres, exam)
    await PostgresSubmissions(postgres).propose(
        file.file_id, 1, file.thread_id, file.epoch, an_assessment(exam)
    )
    return file


def an_assessment(exam: Exam, share: float = 1.0, review: Sequence[str] = ()) -> Assessment:
    """Every criterion earns this share of its points."""
    return Assessment(
        exam_id=exam.id,
        rubric_version=exam.rubric_version,
        model="scripted",
        questions=tuple(
            QuestionResult(
                question_id=question.id,
                score=round(question.points * share, 2),
                max_score=question.points,
                criteria=tuple(
                    CriterionResult(each.id, each.points * share, each.points, "As scripted.")
                    for each in question.criteria
                ),
                specialist=question.type,
                review_reasons=tuple(review),
            )
            for question in exam.questions
        ),
    )


async def events_of(postgres: Postgres, batch_id: str) -> list[dict[str, Any]]:
    """The batch's events in the order of their ids, numbered or not."""
    return await postgres.rows("SELECT * FROM progress_events WHERE batch_id = %s ORDER BY id", [batch_id])


async def until(condition: Callable[[], Awaitable[Any]], *, within_seconds: float = 60) -> Any:
    """What the condition answers once that is true; the time-out is for a hang, not for timing."""
    async with asyncio.timeout(within_seconds):
        while not (answer := await condition()):
            await asyncio.sleep(0.005)
    return answer


async def waiting_for_a_lock(postgres: Postgres) -> int:
    """The pid of a backend of this database that waits for a lock, as soon as there is one."""
    row = await until(
        lambda: postgres.row(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = %s AND wait_event_type = 'Lock'",
            [_NAME],
        )
    )
    return int(row["pid"])


def a_connection(url: str) -> Awaitable[AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]]:
    """A connection beside every pool."""
    return psycopg.AsyncConnection.connect(url)
