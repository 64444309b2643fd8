"""Uploads of one name, limits, and what one tenant sees of another's: nothing."""

import pytest

from db.postgres.batches import PostgresBatches
from db.postgres.exams import PostgresExams
from db.postgres.pool import Postgres
from db.postgres.reports import PostgresResults
from db.postgres.tenants import PostgresKeys
from domain.batch import BatchKind, BatchOpening
from domain.errors import BatchFrozen, FileExists, LimitExceeded, NotFound
from domain.exam import Exam
from tests.db.stage import add_files, an_upload, events_of, pending_batch, scattered_files, stored_exam


async def test_the_same_content_again_is_a_no_op(postgres: Postgres, exam: Exam) -> None:
    batches = PostgresBatches(postgres)
    batch = await pending_batch(postgres, exam)
    first = await batches.add_file("local", batch.id, an_upload("a.md"), overwrite=False)
    for overwrite in (False, True):
        again = await batches.add_file("local", batch.id, an_upload("a.md"), overwrite=overwrite)
        assert (again.created, again.replaced_object_key) == (False, None)
        assert again.file == first.file


async def test_other_content_is_refused_and_changes_nothing(postgres: Postgres, exam: Exam) -> None:
    batches = PostgresBatches(postgres)
    batch = await pending_batch(postgres, exam)
    first = await batches.add_file("local", batch.id, an_upload("a.md"), overwrite=False)
    with pytest.raises(FileExists) as raised:
        await batches.add_file("local", batch.id, an_upload("a.md", "other"), overwrite=False)
    assert raised.value.field == "name"
    assert await batches.file("local", batch.id, first.file.id) == first.file


async def test_an_overwrite_replaces_everything_but_the_id(postgres: Postgres, exam: Exam) -> None:
    batches = PostgresBatches(postgres)
    batch = await pending_batch(postgres, exam)
    first = await batches.add_file(
        "local", batch.id, an_upload("a.md", vehicle_id="v1", vin="1"), overwrite=False
    )
    upload = an_upload("a.md", "longer than it was", vehicle_id="v2", vin="2")
    second = await batches.add_file("local", batch.id, upload, overwrite=True)
    assert second.replaced_object_key == first.file.object_key
    assert not second.created
    file = await batches.file("local", batch.id, first.file.id)
    assert (file.sha256, file.size_bytes, file.object_key) == (
        upload.sha256,
        upload.size_bytes,
        upload.object_key,
    )
    assert (file.vehicle_id, file.vin) == ("v2", "2")
    assert (await batches.files("local", batch.id, 1, 10))[1] == 1


@pytest.mark.parametrize(
    "name", ["答卷 张三.md", "../../etc/passwd", "a\nb", "'; DROP TABLE files; --", "é" * 200]
)
async def test_names_are_data(postgres: Postgres, exam: Exam, name: str) -> None:
    batches = PostgresBatches(postgres)
    batch = await pending_batch(postgres, exam)
    stored = await batches.add_file("local", batch.id, an_upload(name), overwrite=False)
    assert (await batches.file("local", batch.id, stored.file.id)).name == name


async def test_a_full_batch_takes_no_new_name(postgres: Postgres, exam: Exam) -> None:
    batches = PostgresBatches(postgres, max_files=2)
    batch = await pending_batch(postgres, exam)
    await add_files(postgres, batch, ["a", "b"])
    with pytest.raises(LimitExceeded, match="max_files"):
        await batches.check_accepts("local", batch.id, "c")
    assert (await batches.complete("local", batch.id)).total_files == 2


async def test_a_cancelled_batch_takes_nothing_and_is_not_completed(postgres: Postgres, exam: Exam) -> None:
    batches = PostgresBatches(postgres)
    batch = await pending_batch(postgres, exam)
    await add_files(postgres, batch, ["a"])
    cancelled = await batches.cancel_before_start("local", batch.id)
    assert cancelled is not None
    assert cancelled.state == "cancelled"
    with pytest.raises(BatchFrozen):
        await batches.add_file("local", batch.id, an_upload("b"), overwrite=False)
    with pytest.raises(BatchFrozen):
        await batches.complete("local", batch.id)
    assert [file.state for file in (await batches.files("local", batch.id, 1, 10))[0]] == ["cancelled"]
    told = [each["event_type"] for each in await events_of(postgres, batch.id)]
    assert told == ["BatchCreated", "StatusChanged", "StatusChanged"]


async def test_every_read_of_a_tenant_is_its_own(postgres: Postgres, exam: Exam, fresh: str) -> None:
    other = f"other-{fresh}"
    theirs = await stored_exam(postgres, other)
    batches, exams = PostgresBatches(postgres), PostgresExams(postgres)
    batch, file_ids = await scattered_files(postgres, 2, theirs, other)
    refused = [
        batches.read("local", batch.id),
        batches.files("local", batch.id, 1, 10),
        batches.file("local", batch.id, file_ids[0]),
        batches.submission("local", file_ids[0]),
        batches.complete("local", batch.id),
        batches.cancel_before_start("local", batch.id),
        batches.check_accepts("local", batch.id, "a"),
        batches.add_file("local", batch.id, an_upload("a"), overwrite=False),
        batches.open("local", BatchOpening(BatchKind.GRADING, exam_id=theirs.id), "0" * 32, file_ids[0]),
        # an id that is another tenant's batch already
        batches.open("local", BatchOpening(BatchKind.GRADING, exam_id=exam.id), "0" * 32, batch.id),
        exams.read_of_tenant("local", theirs.id),
        exams.create("local", exam, theirs.id),
        PostgresResults(postgres).report("local", batch.id),
    ]
    for asked in refused:
        with pytest.raises(NotFound):
            await asked
    assert batch.id not in {each.id for each in (await batches.list_of_tenant("local", 1, 100, None))[0]}
    assert theirs.id not in {each.id for each in (await exams.list_of_tenant("local", 1, 100))[0]}
    mine, _ = await batches.list_of_tenant(other, 1, 100, None)
    assert [each.id for each in mine] == [batch.id]
    assert await batches.census(other) == ({"scattering": 1}, {"queued": 2})
    # and their batch is as it was
    assert (await batches.read(other, batch.id)).state == "scattering"
    assert (await exams.read_of_tenant(other, theirs.id)).title == theirs.title


async def test_pages_show_everything_once(postgres: Postgres, fresh: str) -> None:
    tenant = f"pages-{fresh}"
    exam = await stored_exam(postgres, tenant)
    batches = PostgresBatches(postgres)
    opened = [(await pending_batch(postgres, exam, tenant)).id for _ in range(5)]
    pages = [await batches.list_of_tenant(tenant, page, 2, None) for page in (1, 2, 3, 4)]
    assert [total for _, total in pages] == [5] * 4
    assert [each.id for page, _ in pages for each in page] == opened[::-1]
    files = [f"{n}.md" for n in range(5)]
    batch = await batches.read(tenant, opened[0])
    await add_files(postgres, batch, files[::-1])
    shown = [await batches.files(tenant, batch.id, page, 2) for page in (1, 2, 3)]
    assert [file.name for page, _ in shown for file in page] == files


async def test_an_exam_comes_back_as_it_was_stored(postgres: Postgres, exam: Exam) -> None:
    await PostgresKeys(postgres).ensure("local", "Local", "test", "assay_stage_local")
    stored = await postgres.rows(
        "SELECT hash FROM rubrics JOIN questions USING (exam_id, question_id)"
        " WHERE exam_id = %s ORDER BY position",
        [exam.id],
    )
    read = await PostgresExams(postgres).read(exam.id)
    assert read == exam
    # equal numbers are not enough: the hash is over their text, and 1 is not 1.0 there
    assert [question.rubric_hash() for question in read.questions] == [row["hash"] for row in stored]
    with pytest.raises(NotFound):
        await PostgresExams(postgres).read(exam.id, rubric_version=2)
