"""The object store over a local folder and over a real S3: one suite for both."""

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from db.objects.store import (
    LEAST_BLOCK_BYTES,
    MOST_BLOCK_BYTES,
    PART_BYTES,
    PARTS_AT_ONCE,
    LocalWriter,
    ObjectStoreFiles,
)
from domain.errors import AssayError, LimitExceeded, NotFound, ObjectStoreUnavailable
from tests.db.s3 import BUCKET, s3_server


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a bucket, whose server and credentials the environment names."""
    folder = tmp_path_factory.mktemp("s3")
    with s3_server(folder) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield folder / BUCKET


@pytest.fixture(params=["folder", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where the objects are on the disk."""
    if request.param == "folder":
        return tmp_path / "objects"
    bucket: Path = request.getfixturevalue("s3")
    return bucket / tmp_path.name


@pytest.fixture
def objects(folder: Path) -> ObjectStoreFiles:
    """A store of the test's own."""
    if folder.name == "objects":
        return ObjectStoreFiles.at(f"file://{folder}")
    return ObjectStoreFiles.at(f"s3://{BUCKET}/{folder.name}")


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def left(folder: Path) -> list[str]:
    """Every file on the disk, finished or not."""
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())


@pytest.mark.parametrize("parts", [(), (b"",), (b"a",), (b"a", b"", b"bc"), (b"x" * PART_BYTES, b"y")])
async def test_a_stream_comes_back_as_it_was_written(
    objects: ObjectStoreFiles, parts: tuple[bytes, ...]
) -> None:
    await objects.write("t/b/f/s", chunks(*parts))
    assert await objects.read("t/b/f/s") == b"".join(parts)


@pytest.mark.parametrize("sent", [0, 10, PART_BYTES + 10])
@pytest.mark.parametrize(
    "error", [LimitExceeded("too large"), ConnectionResetError("gone"), ValueError("odd")]
)
async def test_an_error_on_the_way_leaves_no_object(
    objects: ObjectStoreFiles, folder: Path, sent: int, error: Exception
) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * sent
        raise error

    with pytest.raises((AssayError, ValueError)) as raised:
        await objects.write("t/b/f/s", broken())
    if isinstance(error, AssayError):
        assert raised.value is error
    with pytest.raises(NotFound):
        await objects.read("t/b/f/s")
    assert left(folder) == []


async def test_an_error_on_the_way_leaves_the_object_that_was_there(objects: ObjectStoreFiles) -> None:
    await objects.write("key", chunks(b"old"))

    async def broken() -> AsyncIterator[bytes]:
        yield b"new"
        raise LimitExceeded("too large")

    with pytest.raises(LimitExceeded):
        await objects.write("key", broken())
    assert await objects.read("key") == b"old"


@pytest.mark.parametrize("offset", [0, 1, PART_BYTES, PART_BYTES + 6, PART_BYTES + 7, PART_BYTES * 9])
async def test_a_stream_begins_at_any_byte_and_comes_in_parts(objects: ObjectStoreFiles, offset: int) -> None:
    content = bytes(PART_BYTES) + b"the end"
    await objects.write("key", chunks(content))
    parts = [part async for part in objects.stream("key", offset)]
    assert b"".join(parts) == content[offset:]
    assert all(len(part) <= 2 * PART_BYTES for part in parts)


async def test_a_stream_of_what_is_not_there_says_so(objects: ObjectStoreFiles) -> None:
    with pytest.raises(NotFound):
        await anext(objects.stream("none"))
    with pytest.raises(NotFound):
        await anext(objects.stream("none", 7))


async def test_sixty_megabytes_are_streamed_in_parts(objects: ObjectStoreFiles, folder: Path) -> None:
    block, digest, size = bytes(range(256)) * 4096, hashlib.sha256(), 0

    async def large() -> AsyncIterator[bytes]:
        nonlocal size
        for _ in range(60):
            digest.update(block)
            size += len(block)
            yield block

    await objects.write("large", large())
    stored = await objects.read("large")
    assert len(stored) == size == 60 * 1024 * 1024
    assert hashlib.sha256(stored).digest() == digest.digest()
    assert left(folder) == ["large"]


@pytest.mark.parametrize(
    "sizes", [(), (3, 0, 4), (LEAST_BLOCK_BYTES,), (LEAST_BLOCK_BYTES - 1, 7), (MOST_BLOCK_BYTES - 1,) * 3]
)
async def test_whoever_looks_on_sees_all_bytes_in_their_order(
    objects: ObjectStoreFiles, sizes: tuple[int, ...]
) -> None:
    parts = [bytes([number]) * size for number, size in enumerate(sizes)]
    seen: list[bytes] = []

    await objects.write("key", chunks(*parts), seen.append)

    assert b"".join(seen) == b"".join(parts) == await objects.read("key")


async def test_bytes_that_come_one_by_one_are_kept(objects: ObjectStoreFiles) -> None:
    async def drip() -> AsyncIterator[bytes]:
        for number in range(60_000):
            yield bytes([number % 251])

    await objects.write("key", drip())
    assert await objects.read("key") == bytes(number % 251 for number in range(60_000))


@pytest.mark.parametrize("at", [1, 2, 3])
async def test_an_error_beside_the_event_loop_leaves_no_object(
    objects: ObjectStoreFiles, folder: Path, at: int
) -> None:
    heard = 0

    def object_to(_: bytes) -> None:
        nonlocal heard
        heard += 1
        if heard == at:
            raise LimitExceeded("seen enough")

    with pytest.raises((LimitExceeded, ObjectStoreUnavailable)):
        await objects.write("key", chunks(*[b"x" * MOST_BLOCK_BYTES] * 4), object_to)
    with pytest.raises(NotFound):
        await objects.read("key")
    assert left(folder) == []


@pytest.mark.parametrize("sent", [0, 1, 3])
async def test_a_cancelled_upload_leaves_nothing(objects: ObjectStoreFiles, folder: Path, sent: int) -> None:
    waiting = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        for _ in range(sent):
            yield b"x" * MOST_BLOCK_BYTES
        waiting.set()
        await asyncio.Event().wait()

    writing = asyncio.create_task(objects.write("key", stuck()))
    await waiting.wait()
    writing.cancel()
    with pytest.raises((asyncio.CancelledError, ObjectStoreUnavailable)):
        await writing
    # the driver aborts an upload to a bucket after its caller has gone
    async with asyncio.timeout(10):
        while left(folder):
            await asyncio.sleep(0.01)


async def test_no_more_than_two_blocks_are_in_memory(objects: ObjectStoreFiles) -> None:
    class Counted(bytes):
        alive = 0

        def __del__(self) -> None:
            Counted.alive -= 1

    most = 0

    async def large() -> AsyncIterator[bytes]:
        nonlocal most
        for _ in range(60):
            Counted.alive += 1
            yield Counted(1024 * 1024)
            most = max(most, Counted.alive)

    await objects.write("key", large())

    # one that gathers, one that is written, and what the driver has not put away yet
    assert most * 1024 * 1024 <= 2 * MOST_BLOCK_BYTES + (PARTS_AT_ONCE + 2) * PART_BYTES
    assert Counted.alive <= 1


async def test_a_second_cancellation_waits_for_the_thread_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing, close = threading.Event(), LocalWriter.close

    def slowly(writer: LocalWriter) -> None:
        closing.set()
        time.sleep(0.2)  # a slow disk: longer than both cancellations take
        close(writer)

    # the real one, only later: no disk here is slow when asked to be
    monkeypatch.setattr(LocalWriter, "close", slowly)
    objects = ObjectStoreFiles.at(f"file://{tmp_path}")
    writing = asyncio.create_task(objects.write("key", chunks(b"x" * MOST_BLOCK_BYTES)))
    await asyncio.to_thread(closing.wait)
    writing.cancel()
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    # whole, or not there: its writer knows which once it has ended
    assert left(tmp_path) == ["key"]


async def test_a_rename_overwrites_and_leaves_nothing_behind(objects: ObjectStoreFiles, folder: Path) -> None:
    await objects.write("a", chunks(b"new"))
    await objects.write("b", chunks(b"old"))
    await objects.rename("a", "b")
    assert await objects.read("b") == b"new"
    assert left(folder) == ["b"]
    with pytest.raises(NotFound):
        await objects.rename("a", "b")
    assert await objects.read("b") == b"new"


async def test_a_deletion_may_be_repeated(objects: ObjectStoreFiles, folder: Path) -> None:
    await objects.write("a", chunks(b"x"))
    await objects.delete("a")
    await objects.delete("a")
    assert left(folder) == []


async def test_what_is_older_is_listed(objects: ObjectStoreFiles) -> None:
    await objects.write("uploads/a", chunks(b"x"))
    await objects.write("uploads/b/1", chunks(b"x"))
    await objects.write("t/b/f/s", chunks(b"x"))
    later, earlier = datetime.now(UTC) + timedelta(minutes=1), datetime.now(UTC) - timedelta(minutes=1)

    older = [key async for keys in objects.older_than("uploads/", later) for key in keys]

    assert sorted(older) == ["uploads/a", "uploads/b/1"]
    assert [key async for keys in objects.older_than("uploads/", earlier) for key in keys] == []


async def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "objects"
    objects = ObjectStoreFiles.at(f"file://{folder}")
    written = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        # the second block is handed over once the first is written
        yield b"x" * MOST_BLOCK_BYTES
        yield b"x" * MOST_BLOCK_BYTES
        written.set()
        await asyncio.Event().wait()

    writing = asyncio.create_task(objects.write("uploads/a", endless()))
    await written.wait()
    [staged] = left(folder)
    now = datetime.now(UTC)

    assert await objects.remove_staged("uploads", now - timedelta(minutes=1)) == 0
    assert left(folder) == [staged]
    # as from another process: this one's writing is not asked
    assert await objects.remove_staged("uploads", now + timedelta(minutes=1)) == 1
    assert left(folder) == []
    writing.cancel()
    with pytest.raises((asyncio.CancelledError, ObjectStoreUnavailable)):
        await writing


async def test_a_bucket_that_does_not_answer_is_said_to_be_unavailable(
    s3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another one")
    objects = ObjectStoreFiles.at(f"s3://{BUCKET}/x")
    with pytest.raises(ObjectStoreUnavailable):
        await objects.write("t/b", chunks(b"x"))


async def test_a_store_that_does_not_answer_is_said_to_be_unavailable(tmp_path: Path) -> None:
    folder = tmp_path / "objects"
    objects = ObjectStoreFiles.at(f"file://{folder}")
    await objects.ping()
    # a file where the folder of the key would be
    (folder / "t").write_text("in the way")
    with pytest.raises(ObjectStoreUnavailable):
        await objects.write("t/b", chunks(b"x"))
