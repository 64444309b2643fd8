"""Files by key, written as streams of parts."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError, GenericError
from obstore.store import LocalStore, ObjectStore, from_url

from domain.errors import NotFound, ObjectStoreUnavailable

if TYPE_CHECKING:
    from obstore import GetOptions

PART_BYTES = 5 * 1024 * 1024
#: of one object, in memory: the library's 12 are 60 MiB for each of a hundred uploads
PARTS_AT_ONCE = 3


class ObjectStoreFiles:
    """Objects by key; keys are made of ids (`domain.identity.object_key`), never of names."""

    def __init__(self, store: ObjectStore, folder: Path | None = None) -> None:
        self._store = store
        #: where a local store keeps what it writes
        self._folder = folder

    @classmethod
    def at(cls, url: str) -> "ObjectStoreFiles":
        """The store at a `file://` or `s3://` address; a local folder is made."""
        if url.startswith("file://"):
            folder = Path(url.removeprefix("file://"))
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return cls(LocalStore(folder), folder)
        return cls(from_url(url))

    async def write(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        """Store a stream in parts with constant memory; an error on the way leaves no object."""
        with _translated(key):
            await obstore.put_async(
                self._store,
                key,
                chunks,
                chunk_size=PART_BYTES,
                use_multipart=True,
                max_concurrency=PARTS_AT_ONCE,
            )

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
