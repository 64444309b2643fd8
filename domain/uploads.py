"""Uploads that go on after a break: parts that have arrived, until they are one file (B2, tus)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

#: from its newest part on; then what has arrived is forgotten
RESUMABLE_FOR = timedelta(days=7)
#: unfinished at once, of one tenant
MAX_RESUMABLE = 1_000


@dataclass(frozen=True)
class ResumableUpload:
    """A file on its way into a batch; `size_bytes` is unknown while the client has not said it."""

    id: str
    tenant_id: str
    batch_id: str
    name: str
    size_bytes: int | None
    expires_at: datetime
    offset_bytes: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    #: the file that it has become
    file_id: str | None = None

    @property
    def arrived(self) -> bool:
        """Whether all of its bytes are here."""
        return self.offset_bytes == self.size_bytes


class ResumableUploads(Protocol):
    """Resumable uploads and their parts; the bytes of the parts are in the object store."""

    async def open(self, upload: ResumableUpload) -> None:
        """A new one; raises `LimitExceeded` when the tenant has `MAX_RESUMABLE` unfinished ones."""
        ...

    async def find(self, tenant_id: str, upload_id: str) -> ResumableUpload | None:
        """The tenant's upload, unless it has expired."""
        ...

    async def state_size(self, upload_id: str, size_bytes: int) -> None:
        """The client says how large it will be; a size that was stated stays."""
        ...

    async def add_part(self, upload_id: str, offset_bytes: int, size_bytes: int, object_key: str) -> datetime:
        """Count a stored part in, and say until when the upload is kept.

        Raises `Conflict` unless the part begins where the upload ends.
        """
        ...

    async def part_keys(self, upload_id: str) -> list[str]:
        """The objects of its parts, in order."""
        ...

    async def finish(self, upload_id: str, file_id: str) -> list[str]:
        """It has become that file; the objects of its parts, which nobody needs any more."""
        ...

    async def remove(self, upload_id: str) -> list[str]:
        """Forget it; the objects of its parts."""
        ...
