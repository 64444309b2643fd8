"""What uploads leave behind when nobody goes on with them."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from db.postgres.batches import PostgresBatches
from db.postgres.uploads import PostgresResumableUploads
from domain.batch import BatchKind, BatchOpening
from domain.errors import Conflict, LimitExceeded, NotFound
from domain.ports import Upload
from domain.uploads import RESUMABLE_FOR, ResumableUpload
from runtime.resources import Resources
from runtime.sweeper import LANDING_TIME, UploadSweeper


@dataclass(frozen=True)
class HeldClock:
    """A clock that stands still."""

    moment: datetime

    def now(self) -> datetime:
        """Always the same."""
        return self.moment


async def one(content: bytes) -> AsyncIterator[bytes]:
    yield content


@pytest.fixture
async def batch_id(resources: Resources) -> str:
    """A pending batch of logs."""
    await resources.postgres.run("INSERT INTO tenants (id, name) VALUES ('t', 'T')")
    opening = BatchOpening(BatchKind.DIAGNOSIS)
    return (await PostgresBatches(resources.postgres).open("t", opening, "", str(uuid4()))).id


async def begun(resources: Resources, batch_id: str, expires_at: datetime) -> tuple[str, str]:
    """An upload with one part: its id and the part's key."""
    uploads, upload_id = PostgresResumableUploads(resources.postgres), uuid4().hex
    await uploads.open(ResumableUpload(upload_id, "t", batch_id, "a.log", 6, expires_at))
    key = f"uploads/{upload_id}/0-{uuid4()}"
    await resources.objects.write(key, one(b"abc"))
    await uploads.add_part(upload_id, 0, 3, key)
    return upload_id, key


async def test_what_has_expired_is_removed_with_its_parts(resources: Resources, batch_id: str) -> None:
    uploads = PostgresResumableUploads(resources.postgres)
    now = datetime.now(UTC)
    kept_id, kept = await begun(resources, batch_id, now + RESUMABLE_FOR)
    gone_id, gone = await begun(resources, batch_id, now + RESUMABLE_FOR)
    await resources.postgres.run(
        "UPDATE resumable_uploads SET expires_at = now() - interval '1 s' WHERE id = %s", [gone_id]
    )

    await UploadSweeper(uploads, resources.objects, HeldClock(now)).sweep_once()

    assert await resources.objects.read(kept) == b"abc"
    assert await uploads.find("t", kept_id) is not None
    assert await uploads.find("t", gone_id) is None
    with pytest.raises(NotFound):
        await resources.objects.read(gone)


async def test_an_object_that_no_row_knows_is_removed_once_it_is_old(
    resources: Resources, batch_id: str
) -> None:
    uploads = PostgresResumableUploads(resources.postgres)
    _, known = await begun(resources, batch_id, datetime.now(UTC) + RESUMABLE_FOR)
    await resources.objects.write("uploads/of-a-killed-process", one(b"abc"))
    await resources.objects.write("t/b/f/s", one(b"a file"))

    await UploadSweeper(uploads, resources.objects, HeldClock(datetime.now(UTC))).sweep_once()
    assert await resources.objects.read("uploads/of-a-killed-process") == b"abc"

    tomorrow = HeldClock(datetime.now(UTC) + LANDING_TIME + timedelta(minutes=1))
    await UploadSweeper(uploads, resources.objects, tomorrow).sweep_once()
    with pytest.raises(NotFound):
        await resources.objects.read("uploads/of-a-killed-process")
    assert await resources.objects.read(known) == b"abc"
    assert await resources.objects.read("t/b/f/s") == b"a file"


async def test_a_part_goes_on_where_the_upload_ends(resources: Resources, batch_id: str) -> None:
    uploads = PostgresResumableUploads(resources.postgres)
    upload_id, _ = await begun(resources, batch_id, datetime.now(UTC) + RESUMABLE_FOR)

    for offset in (0, 2, 4):
        with pytest.raises(Conflict):
            await uploads.add_part(upload_id, offset, 3, f"other-{offset}")

    await uploads.add_part(upload_id, 3, 3, "next")
    found = await uploads.find("t", upload_id)
    assert found is not None
    assert found.arrived
    assert await uploads.find("another tenant", upload_id) is None


async def test_unfinished_uploads_of_a_tenant_are_bounded(resources: Resources, batch_id: str) -> None:
    uploads = PostgresResumableUploads(resources.postgres, at_most=2)
    expires_at = datetime.now(UTC) + RESUMABLE_FOR
    first = ResumableUpload(uuid4().hex, "t", batch_id, "a", 1, expires_at)
    await uploads.open(first)
    await uploads.open(ResumableUpload(uuid4().hex, "t", batch_id, "b", 1, expires_at))

    with pytest.raises(LimitExceeded, match="max_resumable"):
        await uploads.open(ResumableUpload(uuid4().hex, "t", batch_id, "c", 1, expires_at))

    await uploads.remove(first.id)
    await uploads.open(ResumableUpload(uuid4().hex, "t", batch_id, "c", 1, expires_at))


async def test_a_tenant_stores_no_more_than_it_may(resources: Resources, batch_id: str) -> None:
    batches = PostgresBatches(resources.postgres, max_tenant_bytes=10)

    async def store(name: str, size_bytes: int, *, overwrite: bool = False) -> None:
        upload = Upload(str(uuid4()), name, f"k/{uuid4()}", size_bytes, f"{name}{size_bytes}")
        await batches.add_file("t", batch_id, upload, overwrite=overwrite)

    await store("a", 6)
    with pytest.raises(LimitExceeded, match="max_tenant_bytes"):
        await store("b", 5)
    await store("a", 3, overwrite=True)
    await store("b", 7)
    with pytest.raises(LimitExceeded, match="max_tenant_bytes"):
        await batches.check_accepts("t", batch_id, "c")
    await store("b", 2, overwrite=True)
    await store("c", 5)
