"""The object store for a process without an event loop, such as one that parses logs."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import obstore
from obstore.store import LocalStore, ObjectStore, from_url

from db.objects.store import _translated

_CHUNK_BYTES = 1024 * 1024


class BlockingObjects:
    """Objects by key, read and written by whoever has nothing to do meanwhile."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @classmethod
    def at(cls, url: str) -> "BlockingObjects":
        """The store at a `file://` or `s3://` address, which is there."""
        if url.startswith("file://"):
            return cls(LocalStore(Path(url.removeprefix("file://"))))
        return cls(from_url(url))

    def chunks(self, key: str) -> Iterator[bytes]:
        """The object's bytes, of about a MiB each; raises `NotFound`."""
        with _translated(key):
            for chunk in obstore.get(self._store, key).stream(min_chunk_size=_CHUNK_BYTES):
                yield bytes(chunk)

    def written_at(self, key: str) -> datetime:
        """When the object was stored; raises `NotFound`."""
        with _translated(key):
            moment: datetime = obstore.head(self._store, key)["last_modified"]
            return moment

    def write(self, key: str, content: bytes) -> None:
        """Store an object, whole or not at all."""
        with _translated(key):
            obstore.put(self._store, key, content)
