"""Property 24: after `complete` nothing is added, and the total is what is stored."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from db.postgres.batches import PostgresBatches
from db.postgres.pool import Postgres
from domain.batch import Batch, BatchKind
from domain.errors import BatchFrozen, EmptyBatch, FileExists
from domain.exam import Exam
from domain.ports import StoredUpload
from tests.db.stage import an_upload, events_of, opened_postgres, pending_batch, stored_exam

#: a name, a content and how long to yield first; or a `complete`
UPLOAD = st.tuples(st.sampled_from("abcde"), st.sampled_from(["x", "x", "y"]), st.booleans())
COMMANDS = st.lists(
    st.tuples(st.integers(0, 12), st.one_of(UPLOAD, UPLOAD, UPLOAD, st.none())), min_size=1, max_size=10
)


@pytest.fixture(scope="module")
async def postgres(session_database_url: str) -> AsyncIterator[Postgres]:
    async with opened_postgres(session_database_url) as opened:
        yield opened


@pytest.fixture(scope="module")
async def exam(postgres: Postgres) -> Exam:
    return await stored_exam(postgres)


@settings(max_examples=100)
@given(kind=st.sampled_from(BatchKind), commands=COMMANDS)
async def test_the_total_is_what_is_stored_and_nothing_is_added_later(
    postgres: Postgres,
    exam: Exam,
    kind: BatchKind,
    commands: list[tuple[int, tuple[str, str, bool] | None]],
) -> None:
    """
    **功能: assay, 属性 24: 批次冻结**
    **验证: 需求 B1**

    For every interleaving of uploads and `complete`, the frozen total equals the stored files, their
    ordinals are 1 to n without a gap, and nothing is added or replaced afterwards.
    """
    batches = PostgresBatches(postgres)
    batch = await pending_batch(postgres, exam, kind=kind)

    async def run(turns: int, upload: tuple[str, str, bool] | None) -> object:
        for _ in range(turns):
            await asyncio.sleep(0)
        if upload is None:
            return await batches.complete("local", batch.id)
        name, content, overwrite = upload
        return await batches.add_file("local", batch.id, an_upload(name, content), overwrite=overwrite)

    outcomes = await asyncio.gather(*(run(*command) for command in commands), return_exceptions=True)
    for outcome in outcomes:
        assert isinstance(outcome, (Batch, StoredUpload, BatchFrozen, EmptyBatch, FileExists)), outcome
    stored = {each.file.name for each in outcomes if isinstance(each, StoredUpload)}
    files, total = await batches.files("local", batch.id, 1, 100)
    assert {file.name for file in files} == stored
    assert total == len(stored)
    frozen = [each for each in outcomes if isinstance(each, Batch)]
    if not frozen:
        assert (await batches.read("local", batch.id)).state == "pending"
        return
    await _check_frozen(batches, frozen, len(stored))
    told = await events_of(postgres, batch.id)
    completed = [each["data"] for each in told if each["event_type"] == "UploadCompleted"]
    assert completed == [{"total_files": total}]
    counted = await postgres.row("SELECT count(*) AS n FROM submissions WHERE batch_id = %s", [batch.id])
    assert counted == {"n": total if kind is BatchKind.GRADING else 0}


async def _check_frozen(batches: PostgresBatches, frozen: list[Batch], stored: int) -> None:
    batch_id = frozen[0].id
    assert {each.total_files for each in frozen} == {stored}
    assert {each.state for each in frozen} == {"uploaded"}
    before, _ = await batches.files("local", batch_id, 1, 100)
    assert [file.ordinal for file in before] == list(range(1, stored + 1))
    for name in (before[0].name, "later"):
        with pytest.raises(BatchFrozen):
            await batches.add_file("local", batch_id, an_upload(name, "z"), overwrite=True)
    assert (await batches.complete("local", batch_id)).total_files == stored
    assert (await batches.files("local", batch_id, 1, 100))[0] == before


async def test_an_upload_in_flight_is_counted_and_one_behind_complete_is_refused(
    postgres: Postgres, exam: Exam
) -> None:
    """The two orders that matter, each held open until the other side waits for it."""
    batches = PostgresBatches(postgres)
    batch = await pending_batch(postgres, exam)
    await batches.add_file("local", batch.id, an_upload("a"), overwrite=False)
    async with postgres.transaction() as upload:
        await upload.execute("SELECT 1 FROM batches WHERE id = %s FOR SHARE", [batch.id])
        completing = asyncio.create_task(batches.complete("local", batch.id))
        await asyncio.sleep(0.05)
        assert not completing.done()
        await upload.execute(
            "INSERT INTO files (id, batch_id, tenant_id, name, size_bytes, sha256, object_key, state)"
            " VALUES (gen_random_uuid(), %s, 'local', 'b', 1, 'x', 'k', 'uploaded')",
            [batch.id],
        )
    assert (await completing).total_files == 2
    with pytest.raises(BatchFrozen):
        await batches.add_file("local", batch.id, an_upload("c"), overwrite=False)


async def test_an_empty_batch_is_not_completed(postgres: Postgres, exam: Exam) -> None:
    batches = PostgresBatches(postgres)
    batch = await pending_batch(postgres, exam)
    with pytest.raises(EmptyBatch):
        await batches.complete("local", batch.id)
    assert await batches.read("local", batch.id) == batch
