"""Diagnoses in Postgres: who may propose, what becomes official, and whose baselines they are."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from db.postgres.baselines import PostgresBaselines
from db.postgres.batches import PostgresBatches, PostgresBatchRuns
from db.postgres.diagnoses import PostgresDiagnoses, PostgresDiagnosisThreads
from db.postgres.logs import PostgresSummaries
from db.postgres.pauses import PostgresPauses
from db.postgres.pool import Postgres
from db.postgres.reruns import PostgresReruns
from domain.batch import Batch, BatchKind, Pause
from domain.diagnosis import BatchSummary, Diagnosis, DiagnosisStart, Finding, RiskLevel, Verdict
from domain.errors import Conflict, EpochSuperseded, NotFound, SagaCompleted, SagaStepRefused
from domain.states import BatchState
from tests.db.stage import events_of, pending_batch, record_log, scattered_files

EARLY = datetime(2026, 1, 2, tzinfo=UTC)


def a_diagnosis(summary: str = "A\0 line.", **fields: str) -> Diagnosis:
    return Diagnosis(
        Verdict.ROOT_CAUSE,
        summary,
        RiskLevel.HIGH,
        "a rule",
        findings=(Finding("c1", "The slot\0 was full", "It was.", 0.9),),
        **fields,  # type: ignore[arg-type]  # names of text fields only
    )


def start_of(batch: Batch, thread_id: str = "run-1", **fields: datetime) -> DiagnosisStart:
    return DiagnosisStart(
        batch.id,
        batch.generation,
        f"{batch.id}/{thread_id}",
        f"batch/{batch.id}/diagnosis",
        thread_id,
        **fields,
    )


async def gathered_batch(postgres: Postgres, *, signature: str = "", finished: bool = False) -> Batch:
    """A batch of one parsed log, diagnosing, or finished without a diagnosis."""
    batch, (file_id,) = await scattered_files(postgres, 1, kind=BatchKind.DIAGNOSIS)
    await record_log(postgres, file_id)
    runs = PostgresBatchRuns(postgres)
    await runs.open_barrier(batch.id)
    await runs.begin_gathering(batch.id)
    summary = BatchSummary(
        batch.id, 1, files=1, lines=2, parsed_lines=2, expanded_bytes=8, signature=signature
    )
    await PostgresSummaries(postgres).write(summary, "key", "0" * 64)
    await runs.gather(batch.id)
    await runs.begin_diagnosing(batch.id)
    if finished:
        await runs.finish(batch.id)
    return await PostgresBatches(postgres).read("local", batch.id)


async def test_of_two_attempts_and_of_two_runs_the_newer_one_may_propose(postgres: Postgres) -> None:
    batch = await gathered_batch(postgres)
    threads, diagnoses = PostgresDiagnosisThreads(postgres), PostgresDiagnoses(postgres)
    first = start_of(batch, scheduled_at=EARLY)
    assert [await threads.begin(first), await threads.begin(first)] == [1, 2]
    with pytest.raises(EpochSuperseded):
        await diagnoses.propose(batch.id, 1, first.thread_id, 1, a_diagnosis())
    await diagnoses.propose(batch.id, 1, first.thread_id, 2, a_diagnosis())

    # the workflow was reset: its new run's thread supersedes the older one's
    second = start_of(batch, "run-2", scheduled_at=EARLY + timedelta(seconds=1))
    assert await threads.begin(second) == 1
    with pytest.raises(EpochSuperseded):
        await diagnoses.propose(batch.id, 1, first.thread_id, 2, a_diagnosis())
    assert await threads.begin(first) is None, "a straggler begins nothing"
    with pytest.raises(EpochSuperseded):
        await diagnoses.record(batch.id, 1, second.thread_id)
    await diagnoses.propose(batch.id, 1, second.thread_id, 1, a_diagnosis())
    assert (await diagnoses.record(batch.id, 1, second.thread_id)).findings == 1


async def test_a_diagnosis_becomes_official_once_and_may_be_retracted_until_it_is_published(
    postgres: Postgres,
) -> None:
    diagnoses = PostgresDiagnoses(postgres)
    kept, retracted = await gathered_batch(postgres), await gathered_batch(postgres)
    for batch in (kept, retracted):
        start = start_of(batch)
        await PostgresDiagnosisThreads(postgres).begin(start)
        with pytest.raises(SagaStepRefused):
            await diagnoses.record(batch.id, 1, start.thread_id)
        await diagnoses.propose(batch.id, 1, start.thread_id, 1, a_diagnosis())
        for _ in range(2):
            await diagnoses.record(batch.id, 1, start.thread_id)
    # what is official is not proposed anew
    await diagnoses.propose(kept.id, 1, start_of(kept).thread_id, 1, a_diagnosis("Another."))
    await diagnoses.publish(kept.id, 1)
    with pytest.raises(SagaCompleted):
        await diagnoses.retract(kept.id, 1, "too late")
    for _ in range(2):
        await diagnoses.retract(retracted.id, 1, "why")
    with pytest.raises(SagaStepRefused):
        await diagnoses.record(retracted.id, 1, start_of(retracted).thread_id)

    runs = PostgresBatchRuns(postgres)
    assert [await runs.finish(each.id) for each in (kept, retracted)] == ["completed", "partial"]
    told = [
        [each["event_type"] for each in await events_of(postgres, batch.id)] for batch in (kept, retracted)
    ]
    assert [each.count("DiagnosisCompleted") for each in told] == [1, 1]
    assert [each.count("DiagnosisRetracted") for each in told] == [0, 1]
    row = await postgres.row("SELECT root_cause, document FROM ai_diagnoses WHERE batch_id = %s", [kept.id])
    assert row is not None
    assert (row["root_cause"], row["document"]["summary"]) == ("The slot\ufffd was full", "A\ufffd line.")


async def test_a_rerun_takes_the_thread_from_whoever_still_works(postgres: Postgres) -> None:
    batch = await gathered_batch(postgres)
    start = start_of(batch)
    await PostgresDiagnosisThreads(postgres).begin(start)
    await PostgresDiagnoses(postgres).fail(batch.id, 1, "model_refused", "No.")
    assert await PostgresBatchRuns(postgres).finish(batch.id) is BatchState.PARTIAL
    again = await PostgresReruns(postgres).retry_failed("local", batch.id)
    assert (again.generation, again.state, again.failure_code) == (2, "scattering", None)
    with pytest.raises(EpochSuperseded):
        await PostgresDiagnoses(postgres).propose(batch.id, 1, start.thread_id, 1, a_diagnosis())
    assert await PostgresDiagnosisThreads(postgres).begin(start) is None
    with pytest.raises(EpochSuperseded):
        await PostgresPauses(postgres).pause_batch(batch.id, 1, Pause("batch"))


async def test_an_equal_case_is_found_within_its_tenant_and_by_its_first_diagnosis(
    postgres: Postgres,
) -> None:
    signature = uuid4().hex
    diagnoses, batches = PostgresDiagnoses(postgres), []
    for reused_from in ("", "an earlier one"):
        batch = await gathered_batch(postgres, signature=signature)
        await PostgresDiagnosisThreads(postgres).begin(start_of(batch))
        diagnosis = a_diagnosis("Said first." if not reused_from else "Repeated.", reused_from=reused_from)
        await diagnoses.propose(batch.id, 1, start_of(batch).thread_id, 1, diagnosis)
        batches.append(batch)
    found = await diagnoses.of_signature("local", signature, "local")
    assert found is not None
    assert (found[0], found[1].summary) == (batches[0].id, "Said first.")
    assert await diagnoses.of_signature("other", signature, "local") is None
    assert await diagnoses.of_signature("local", signature, "openai:x") is None


async def test_a_pause_of_before_a_resumption_pauses_nothing(postgres: Postgres) -> None:
    batch, pauses = await gathered_batch(postgres), PostgresPauses(postgres)
    assert await pauses.pause_batch(batch.id, 1, Pause("batch", 5)) == 0
    assert await pauses.resume("local", batch.id) == 1
    assert await pauses.pause_batch(batch.id, 1, Pause("batch", 5)) == 1
    assert (await PostgresBatches(postgres).read("local", batch.id)).state is BatchState.DIAGNOSING


async def test_a_baseline_is_the_tenants_own_and_is_settled_when_a_batch_is_opened(
    postgres: Postgres,
) -> None:
    baselines = PostgresBaselines(postgres)
    first, second = [await gathered_batch(postgres, finished=True) for _ in range(2)]
    running = await gathered_batch(postgres)
    await baselines.put("local", "healthy", first.id)
    opened = await pending_batch(postgres, kind=BatchKind.DIAGNOSIS, baseline="healthy")
    await baselines.put("local", "healthy", second.id)
    by_id = await pending_batch(postgres, kind=BatchKind.DIAGNOSIS, baseline=second.id)
    assert (opened.baseline_batch_id, by_id.baseline_batch_id) == (first.id, second.id)
    named = [await PostgresSummaries(postgres).baseline_of(each.id) for each in (opened, by_id)]
    assert [(each.batch_id, each.name) for each in named if each] == [(first.id, "healthy"), (second.id, "")]

    for name in ("healthy", first.id):
        with pytest.raises(NotFound) as refusal:
            await pending_batch(postgres, tenant_id="other", kind=BatchKind.DIAGNOSIS, baseline=name)
        assert refusal.value.field == "baseline"
    with pytest.raises(NotFound):
        await baselines.put("other", "mine", first.id)
    for batch in (running, await pending_batch(postgres)):
        with pytest.raises(Conflict):
            await baselines.put("local", "early", batch.id)
    await baselines.remove("local", "healthy")
    with pytest.raises(NotFound):
        await baselines.read("local", "healthy")
