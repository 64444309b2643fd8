"""Property 23: the barrier opens once, with the right count, whatever happens to the set in Redis."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activities.batches import BatchActivities, BatchRef
from db.postgres.batches import PostgresBatchRuns
from db.postgres.diagnosis_reports import PostgresDiagnosisReports
from db.postgres.grading import PostgresAssessments, PostgresThreads
from db.postgres.pool import Postgres
from db.postgres.reports import PostgresResults
from db.redis.barrier import RedisBarrier, barrier_key
from db.redis.cache import RedisReportCache
from db.redis.connection import RedisLink
from domain.batch import BatchKind
from domain.errors import Conflict, SagaStepRefused
from domain.exam import Exam
from domain.states import FILE_MACHINE
from runtime.embedded import Addresses
from tests.db.stage import a_start, events_of, opened_postgres, record_log, scattered_files, stored_exam

_FILES = 4
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("complete"), st.integers(0, _FILES - 1)),
        st.tuples(st.sampled_from(["lose", "rebuild", "open"]), st.just(0)),
    ),
    max_size=14,
)


@pytest.fixture(scope="module")
async def postgres(session_database_url: str) -> AsyncIterator[Postgres]:
    async with opened_postgres(session_database_url) as opened:
        yield opened


@pytest.fixture(scope="module")
async def exam(postgres: Postgres) -> Exam:
    return await stored_exam(postgres)


@pytest.fixture(scope="module")
async def redis(addresses: Addresses) -> AsyncIterator[RedisLink]:
    link = RedisLink.to(addresses.redis_url, max_connections=10, timeout_seconds=5)
    yield link
    await link.close()


def activities(postgres: Postgres, redis: RedisLink) -> BatchActivities:
    return BatchActivities(
        runs=PostgresBatchRuns(postgres),
        barrier=RedisBarrier(redis),
        results=PostgresResults(postgres),
        reports=RedisReportCache(redis),
        diagnosis_reports=PostgresDiagnosisReports(postgres),
    )


@settings(max_examples=100)
@given(kind=st.sampled_from(BatchKind), count=st.integers(1, _FILES), steps=STEPS, openers=st.integers(1, 4))
async def test_the_barrier_opens_once_with_the_right_count(
    postgres: Postgres,
    redis: RedisLink,
    exam: Exam,
    kind: BatchKind,
    count: int,
    steps: list[tuple[str, int]],
    openers: int,
) -> None:
    """
    **功能: assay, 属性 23: 屏障幂等性**
    **验证: 需求 B4**

    For every sequence of repeated, reordered, lost and rebuilt completions the barrier stays shut
    until the last file is final, then opens once, and counts every file once.
    """
    made, barrier = activities(postgres, redis), RedisBarrier(redis)
    batch, file_ids = await scattered_files(postgres, count, exam, kind=kind)
    ref = BatchRef("local", batch.id, kind=kind)
    final: set[str] = set()
    arrived: set[str] = set()
    for step, index in [*steps, *(("complete", index) for index in range(count))]:
        if step == "complete":
            file_id = file_ids[index % count]
            await _end(postgres, kind, file_id, index)
            final.add(file_id)
            assert await barrier.arrive(batch.id, file_id) == (file_id not in arrived)
            arrived.add(file_id)
        elif step == "lose":
            await redis.client.delete(barrier_key(batch.id))
            arrived = set()
        elif step == "rebuild":
            assert set(await made.runs.finished_files(batch.id)) == final
            assert await barrier.rebuild(batch.id, sorted(final)) == len(final)
            arrived = set(final)
        elif len(final) < count:
            with pytest.raises(Conflict):
                await made.open_barrier(ref)
        else:
            await made.open_barrier(ref)
            arrived = set(final)
        assert await barrier.count(batch.id) == len(arrived)
    opened = await asyncio.gather(*(made.open_barrier(ref) for _ in range(openers)))
    assert {counts.finished for counts in opened} == {count}
    assert await barrier.count(batch.id) == count
    told = await events_of(postgres, batch.id)
    assert [each["data"] for each in told if each["event_type"] == "AllFilesScattered"] == [{"files": count}]
    ends = Counter(
        str(each["file_id"])
        for each in told
        if each["data"].get("machine") == "file" and each["data"]["to"] in FILE_MACHINE.final
    )
    assert ends == dict.fromkeys(file_ids, 1)


async def _end(postgres: Postgres, kind: BatchKind, file_id: str, index: int) -> None:
    assessments = PostgresAssessments(postgres)
    if kind is BatchKind.DIAGNOSIS and not index % 2:
        with suppress(SagaStepRefused):  # it has ended otherwise
            await record_log(postgres, file_id)
        return
    await PostgresThreads(postgres).begin(a_start(file_id, thread_id=f"{file_id}-run"))
    if index % 2:
        await assessments.fail(file_id, 1, "broken", "It broke.")
    else:
        await assessments.cancel(file_id, 1)


async def test_a_lost_redis_set_neither_delays_nor_miscounts(
    postgres: Postgres, redis: RedisLink, exam: Exam
) -> None:
    made = activities(postgres, redis)
    batch, file_ids = await scattered_files(postgres, 3, exam)
    for index, file_id in enumerate(file_ids):
        await _end(postgres, BatchKind.GRADING, file_id, index)
    # not one arrival was counted in Redis
    counts = await made.open_barrier(BatchRef("local", batch.id))
    assert (counts.finished, counts.total) == (3, 3)
    assert await made.barrier.count(batch.id) == 3
    seconds = await redis.client.ttl(barrier_key(batch.id))
    assert 0 < seconds <= 24 * 3600
