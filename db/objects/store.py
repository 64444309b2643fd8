"""Files by key, written as streams of parts."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError, GenericError
from obstore.store import LocalStore, ObjectStore, from_url

from domain.errors import NotFound, ObjectStoreUnavailable

if TYPE_CHECKING:
    from obstore import GetOptions, WritableFile

#: chunks as they came
Block = Sequence[bytes]
#: hears bytes that are being stored
Seen = Callable[[bytes], object]

PART_BYTES = 5 * 1024 * 1024
#: of one object, in memory: the library's 12 are 60 MiB for each of a hundred uploads
PARTS_AT_ONCE = 3
#: handed to a thread in one go: with 1 MiB, the handing over costs a fourth of an upload's throughput
LEAST_BLOCK_BYTES, MOST_BLOCK_BYTES = 1024 * 1024, 8 * 1024 * 1024
#: of all uploads together that wait to be handed over, as long as the least is enough
WAITING_BYTES = 64 * 1024 * 1024
#: what a chunk takes in memory beside its bytes: a client may send them one by one
CHUNK_BYTES = 64
#: chunks that are smaller than this, at an average, become one
SMALL_CHUNK_BYTES = 16 * 1024
#: of their own: a disk that stands still must not keep the event loop's from looking up names
_WRITERS = ThreadPoolExecutor(4, thread_name_prefix="assay-objects")


class ObjectStoreFiles:
    """Objects by key; keys are made of ids (`domain.identity.object_key`), never of names."""

    def __init__(self, store: ObjectStore, folder: Path | None = None) -> None:
        self._store = store
        #: where a local store keeps what it writes
        self._folder = folder
        self._underway = 0

    @classmethod
    def at(cls, url: str) -> "ObjectStoreFiles":
        """The store at a `file://` or `s3://` address; a local folder is made."""
        if url.startswith("file://"):
            folder = Path(url.removeprefix("file://"))
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return cls(LocalStore(folder), folder)
        return cls(from_url(url))

    async def write(self, key: str, chunks: AsyncIterator[bytes], seen: Seen = len) -> None:
        """Store a stream in parts with constant memory; an error on the way leaves no object.

        A cancellation at its very end may leave it whole. `seen` hears of all bytes in their order, beside
        the event loop where they are many.
        """
        self._underway += 1
        try:
            with _translated(key):
                await self._write(key, self._in_blocks(chunks), seen)
        finally:
            self._underway -= 1

    async def _write(self, key: str, blocks: AsyncGenerator[Block, None], seen: Seen) -> None:
        # no tuple: Python 3.11 takes one for the exception's arguments
        begun: list[Block] = [await anext(blocks, [])]
        if sum(map(_weight, begun[0])) < LEAST_BLOCK_BYTES:
            content = b"".join(begun[0])
            seen(content)
            await obstore.put_async(self._store, key, content, use_multipart=False)
        elif self._folder is not None:
            await _write_beside(LocalWriter(self._store, key, seen), _going_on(begun, blocks))
        else:
            await obstore.put_async(
                self._store,
                key,
                _shown(_going_on(begun, blocks), seen),
                chunk_size=PART_BYTES,
                use_multipart=True,
                max_concurrency=PARTS_AT_ONCE,
            )

    async def _in_blocks(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[Block, None]:
        """The chunks in lists, larger ones while few uploads are under way."""
        block: list[bytes] = []
        weight = 0
        async for chunk in chunks:
            block.append(chunk)
            weight += _weight(chunk)
            share = WAITING_BYTES // max(1, self._underway)
            if weight >= max(LEAST_BLOCK_BYTES, min(MOST_BLOCK_BYTES, share)):
                yield block
                block, weight = [], 0
        if block:
            yield block

    async def read(self, key: str) -> bytes:
        """The whole object; raises `NotFound`."""
        with _translated(key):
            result = await obstore.get_async(self._store, key)
            return bytes(await result.bytes_async())

    async def stream(self, key: str, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The object from a byte on, in parts with constant memory; raises `NotFound` at the first."""
        with _translated(key):
            # stores refuse a range that begins at the end or after it
            if offset and offset >= (await obstore.head_async(self._store, key))["size"]:
                return
            options: GetOptions = {"range": {"offset": offset}} if offset else {}
            result = await obstore.get_async(self._store, key, options=options)
            async for part in result.stream(min_chunk_size=PART_BYTES):
                yield bytes(part)

    async def rename(self, source: str, target: str) -> None:
        """Move an object; the target is overwritten."""
        with _translated(source):
            await obstore.rename_async(self._store, source, target, overwrite=True)

    async def delete(self, key: str) -> None:
        """Remove the object; absence is no error."""
        try:
            with _translated(key):
                await obstore.delete_async(self._store, key)
        except NotFound:
            return

    async def older_than(self, prefix: str, moment: datetime) -> AsyncIterator[list[str]]:
        """The keys below the prefix that were last written before the moment, in lists of some hundreds."""
        with _translated(prefix):
            async for listed in obstore.list(self._store, prefix):
                yield [each["path"] for each in listed if each["last_modified"] < moment]

    async def remove_staged(self, prefix: str, moment: datetime) -> int:
        """Remove what killed processes were writing below the prefix before the moment; how many there were.

        A local store writes beside the key, as `key#1`, which no listing shows. Of a bucket a rule of its own
        aborts unfinished uploads.
        """
        if self._folder is None:
            return 0
        return await asyncio.to_thread(_remove_staged, self._folder / prefix, moment.timestamp())

    async def ping(self) -> None:
        """Raises `ObjectStoreUnavailable`."""
        with _translated(""):
            await obstore.list_with_delimiter_async(self._store, "ping")


class LocalWriter:
    """One object of a local store, written block by block by threads.

    It takes half the CPU of the driver's own way, which asks the event loop for each chunk.
    """

    def __init__(self, store: ObjectStore, key: str, seen: Seen) -> None:
        self._writer: WritableFile | None = obstore.open_writer(
            store, key, buffer_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
        )
        self._seen = seen

    def write(self, block: Block) -> None:
        """Show and write the next chunks."""
        assert self._writer is not None
        for piece in _pieces(block):
            self._seen(piece)
            self._writer.write(piece)

    def close(self) -> None:
        """Put the object into its place."""
        assert self._writer is not None
        self._writer.close()

    def abandon(self) -> None:
        """Remove what is staged, as the driver does once nobody holds its writer any more."""
        self._writer = None


async def _write_beside(writer: LocalWriter, blocks: AsyncIterator[Block]) -> None:
    """Each block is written while the next one arrives."""
    loop = asyncio.get_running_loop()
    # a future of the pool and no task: what cancels every task at the end would take it for stopped
    writing = loop.run_in_executor(_WRITERS, writer.write, ())
    try:
        async for block in blocks:
            await asyncio.shield(writing)
            writing = loop.run_in_executor(_WRITERS, writer.write, block)
            del block  # it is in memory until it is written, and not until the next one is there
        await asyncio.shield(writing)
        writing = loop.run_in_executor(_WRITERS, writer.close)
        await asyncio.shield(writing)
    finally:
        try:
            await _ended(writing)
        finally:
            await loop.run_in_executor(_WRITERS, writer.abandon)


async def _ended(work: "asyncio.Future[None]") -> None:
    """Wait for a thread, which cannot be stopped; who cancels meanwhile has to wait, too."""
    cancelled = False
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            cancelled = True
    if not work.cancelled():
        work.exception()
    if cancelled:
        raise asyncio.CancelledError


async def _shown(blocks: AsyncIterator[Block], seen: Seen) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    async for block in blocks:
        pieces = _pieces(block)
        await loop.run_in_executor(_WRITERS, _show, pieces, seen)
        for piece in pieces:
            yield piece


def _show(pieces: Block, seen: Seen) -> None:
    for piece in pieces:
        seen(piece)


async def _going_on(begun: list[Block], rest: AsyncIterator[Block]) -> AsyncIterator[Block]:
    yield begun.pop()
    async for block in rest:
        yield block
        del block


def _weight(chunk: bytes) -> int:
    return len(chunk) + CHUNK_BYTES


def _pieces(block: Block) -> Block:
    """The chunks, or all in one: the driver keeps each piece, and each takes a call."""
    small = sum(map(len, block)) < SMALL_CHUNK_BYTES * len(block)
    return [b"".join(block)] if small else block


def _remove_staged(folder: Path, before: float) -> int:
    removed = 0
    for each in folder.rglob("*#*"):
        with suppress(FileNotFoundError):
            if each.is_file() and each.stat().st_mtime < before:
                each.unlink()
                removed += 1
    return removed


@contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"There is no object {key}.") from error
    except (GenericError, BaseError, OSError) as error:
        raise ObjectStoreUnavailable(f"The object store does not answer: {str(error)[:200]}") from error
