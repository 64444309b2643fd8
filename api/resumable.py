"""Uploads that go on after a break, by the tus protocol 1.0 (B2): `tuspyserver` over parts of our own.

What has arrived is stored as objects of a few MiB, each with its row; the row alone says how far the upload
is. When the last byte is there, the parts are streamed through the same door as any other upload.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Header, HTTPException, Request, Response
from tuspyserver import create_tus_router
from tuspyserver.storage import TusStorage

from api.bodies import too_large
from api.dependencies import Services, ServicesOf, Submitter, check_id
from api.errors import Carried
from api.uploads import Statement, check_digest, check_name, check_text, discard, store_upload
from api.wire import vin_text
from domain.errors import Conflict, InvalidInput, LimitExceeded, NotFound, Unavailable
from domain.gateway import Caller
from domain.uploads import RESUMABLE_FOR, ResumableUpload

PREFIX = "/v1/uploads"
TUS_VERSION = "1.0.0"
EXTENSIONS = "creation,creation-defer-length,expiration,termination"
LOCK = "upload"

MAX_VEHICLE_ID_LENGTH = 255

_LENGTHS = frozenset({"upload-length", "upload-defer-length"})
_UPLOAD_ID = re.compile(r"[0-9a-f]{32}")
#: the library looks at a limit of its own; ours is `max_file_bytes`, which only the request's services know
_NO_LIMIT = 2**63 - 1


@dataclass
class Visit:
    """One request at one upload: who asks, and the bytes that have come and are not stored yet."""

    services: Services
    caller: Caller
    upload: ResumableUpload | None = None
    waiting: bytearray = field(default_factory=bytearray)

    async def find(self, upload_id: str) -> ResumableUpload | None:
        """The caller's upload as it is now."""
        if not _UPLOAD_ID.fullmatch(upload_id):
            return None
        self.upload = await self.services.resumable_uploads.find(self.caller.tenant_id, upload_id)
        return self.upload

    async def take(self, chunk: bytes) -> None:
        """Keep the bytes; what makes a part is stored."""
        self.waiting += chunk
        part_bytes = self.services.limits.part_bytes
        while len(self.waiting) >= part_bytes:
            await self._store(bytes(self.waiting[:part_bytes]))
            del self.waiting[:part_bytes]

    async def store_rest(self) -> None:
        """Store what is shorter than a part, too."""
        if self.waiting:
            rest, self.waiting = bytes(self.waiting), bytearray()
            await self._store(rest)

    async def _store(self, part: bytes) -> None:
        assert self.upload is not None
        offset = self.upload.offset_bytes
        if offset + len(part) > self.services.limits.max_file_bytes:
            raise too_large("file", self.services.limits.max_file_bytes, "max_file_bytes")
        # a key for each try: of two requests that bring the same bytes, one removes what it wrote
        key = f"uploads/{self.upload.id}/{offset}-{self.services.new_id()}"
        try:
            await self.services.objects.write(key, _one(part))
            await self.services.resumable_uploads.add_part(self.upload.id, offset, len(part), key)
        except Unavailable:
            raise  # the commit may have happened: the sweeper looks after an object without a row
        except BaseException:
            await discard(self.services, key)
            raise
        self.upload = replace(self.upload, offset_bytes=offset + len(part))


#: the library hands its storage nothing but the upload's id
_visit: ContextVar[Visit] = ContextVar("visit")


class PartStorage(TusStorage):
    """Uploads as rows and part objects, always those of the request's caller."""

    async def create(self, uid: str) -> None:
        """Nothing yet: the row is written with its metadata."""

    async def exists(self, uid: str) -> bool:
        """Whether the caller has this upload."""
        return await _visit.get().find(uid) is not None

    async def size(self, uid: str) -> int:
        """Bytes that are stored."""
        upload = _visit.get().upload
        return 0 if upload is None else upload.offset_bytes

    async def append(self, uid: str, chunk: bytes) -> None:
        """Take more bytes; raises `Carried`, as the library answers other errors with success."""
        with Carried.errors():
            await _visit.get().take(chunk)

    async def flush(self, uid: str) -> None:
        """Store what was taken."""
        with Carried.errors():
            await _visit.get().store_rest()

    async def finalize(self, uid: str) -> None:
        """Nothing: `_joining` makes the file, for empty uploads too."""

    async def read(self, uid: str) -> bytes | None:
        """Never asked for: nobody holds a whole upload in memory."""
        raise NotImplementedError

    async def delete(self, uid: str) -> None:
        """Forget the upload and its parts."""
        visit = _visit.get()
        await discard(visit.services, *await visit.services.resumable_uploads.remove(uid))

    async def read_info(self, uid: str) -> dict[str, Any] | None:
        """What the library wants to know, from the row."""
        upload = await _visit.get().find(uid)
        if upload is None:
            return None
        return {
            # the library's HEAD refuses uploads without a type
            "metadata": {"filename": upload.name, "filetype": "application/octet-stream"},
            "size": upload.size_bytes,
            "offset": upload.offset_bytes,
            "created_at": "",
            "defer_length": upload.size_bytes is None,
            "expires": upload.expires_at.timestamp(),
        }

    async def write_info(self, uid: str, data: dict[str, Any]) -> None:
        """Open the upload, or take a size that was deferred; the offset is the row's own."""
        visit = _visit.get()
        if visit.upload is None:
            await visit.services.resumable_uploads.open(opened(visit, uid, data))
            await visit.find(uid)
        elif visit.upload.size_bytes is None and data["size"] is not None:
            _check_size(visit.services, data["size"], at_least=visit.upload.offset_bytes)
            await visit.services.resumable_uploads.state_size(uid, data["size"])

    async def list_uids(self) -> list[str]:
        """None: the sweeper looks after expired ones."""
        return []

    def location(self, uid: str) -> str:
        """The upload's id, for `_joining`."""
        return uid

    @asynccontextmanager
    async def lock(self, uid: str) -> AsyncIterator[None]:  # type: ignore[override]  # as the library uses it
        """No lock: a part that does not begin where the row ends is refused."""
        yield


async def _one(part: bytes) -> AsyncIterator[bytes]:
    yield part


def opened(visit: Visit, upload_id: str, data: Mapping[str, Any]) -> ResumableUpload:
    """The new upload of what the client states."""
    metadata = {str(name): str(value) for name, value in data["metadata"].items()}
    if not metadata.get("batch_id"):
        raise InvalidInput(
            "batch_id: missing in Upload-Metadata; state the batch's id, in Base64.", field="batch_id"
        )
    return ResumableUpload(
        id=upload_id,
        tenant_id=visit.caller.tenant_id,
        batch_id=check_id("batch", metadata["batch_id"]),
        name=file_name(metadata),
        size_bytes=data["size"],
        metadata={name: metadata[name] for name in _KEPT if name in metadata},
        expires_at=visit.services.clock.now() + RESUMABLE_FOR,
    )


#: of the metadata; others belong to the client
_KEPT = ("sha256", "vehicle_id", "vin", "overwrite")


def file_name(metadata: Mapping[str, str]) -> str:
    """The name that the file will have; raises `InvalidInput`."""
    name = metadata.get("filename") or metadata.get("name")
    if not name:
        raise InvalidInput("filename: missing in Upload-Metadata; state the file's name.", field="filename")
    return check_name(name)


def statement_of(upload: ResumableUpload) -> Statement:
    """What its client says of the file; raises `InvalidInput`."""
    metadata = upload.metadata
    overwrite = metadata.get("overwrite", "false")
    if overwrite not in ("true", "false"):
        raise InvalidInput("overwrite: say true or false.", field="overwrite")
    vehicle_id = check_text("vehicle_id", metadata.get("vehicle_id", ""))
    if len(vehicle_id) > MAX_VEHICLE_ID_LENGTH:
        raise InvalidInput(
            f"vehicle_id: at most {MAX_VEHICLE_ID_LENGTH} characters are possible.", field="vehicle_id"
        )
    try:
        vin = vin_text(metadata.get("vin", ""))
    except ValueError as error:
        raise InvalidInput(f"vin: {error}", field="vin") from error
    return Statement(
        name=upload.name,
        sha256=check_digest(metadata.get("sha256")),
        size_bytes=upload.size_bytes,
        vehicle_id=vehicle_id,
        vin=vin,
        overwrite=overwrite == "true",
    )


async def join(visit: Visit, upload: ResumableUpload) -> None:
    """Make a file of an upload that has arrived; whoever comes second finds it made."""
    services = visit.services
    async with services.locks.held(LOCK, upload.id):
        newest = await visit.find(upload.id)
        if newest is None or newest.file_id is not None:
            return
        try:
            stored = await store_upload(
                services, visit.caller, upload.batch_id, statement_of(newest), _joined(services, upload.id)
            )
        except (Conflict, InvalidInput, LimitExceeded, NotFound):
            # what is refused for good leaves nothing behind
            await discard(services, *await services.resumable_uploads.remove(upload.id))
            raise
        await discard(services, *await services.resumable_uploads.finish(upload.id, stored.file.id))


async def _joined(services: Services, upload_id: str) -> AsyncIterator[bytes]:
    for key in await services.resumable_uploads.part_keys(upload_id):
        yield await services.objects.read(key)


def _check_size(services: Services, size_bytes: int, *, at_least: int = 0) -> None:
    if size_bytes > services.limits.max_file_bytes:
        raise too_large("file", services.limits.max_file_bytes, "max_file_bytes")
    if size_bytes < at_least:
        raise InvalidInput(
            f"Upload-Length: {size_bytes:,}; {at_least:,} bytes have arrived.", field="Upload-Length"
        )


# --- what the library's routes depend on ---------------------------------------------------------


async def _enter(
    request: Request,
    services: ServicesOf,
    caller: Submitter,
    tus_resumable: Annotated[str | None, Header()] = None,
    upload_concat: Annotated[str | None, Header()] = None,
) -> None:
    """Who asks, before a byte is read: the library takes a body before it looks at anything else."""
    if tus_resumable != TUS_VERSION:
        raise HTTPException(412, f"Tus-Resumable: this is {TUS_VERSION}.", {"Tus-Version": TUS_VERSION})
    visit = Visit(services, caller)
    _visit.set(visit)
    method = request.headers.get("x-http-method-override", request.method).upper()
    if method == "POST" and (upload_concat or request.headers.get("content-length", "0") != "0"):
        raise InvalidInput(
            f"The extensions are {EXTENSIONS}: open an upload without a body, then send PATCH.", field="body"
        )
    if method == "POST" and not _LENGTHS.intersection(request.headers):
        raise InvalidInput(
            "Upload-Length: missing; state the file's bytes, or Upload-Defer-Length: 1.",
            field="Upload-Length",
        )
    if method == "PATCH":
        _check_body(request)
    if method == "HEAD":
        upload = await visit.find(str(request.path_params.get("uuid", "")))
        # a crash may have come between the last byte and the file
        if upload is not None and upload.arrived:
            await join(visit, upload)


def _check_body(request: Request) -> None:
    """The library stores a body and looks at its headers then."""
    if request.headers.get("content-type") != "application/offset+octet-stream":
        raise HTTPException(415, "Content-Type: send application/offset+octet-stream.")
    if "content-length" not in request.headers:
        raise HTTPException(411, "Content-Length: missing; state the bytes of this request's body.")


Hook = Callable[[Mapping[str, str], Mapping[str, Any]], Awaitable[None]]


async def _opening() -> Hook:
    """Checks what is stated of a new upload, so that nothing is sent in vain."""

    async def check(metadata: Mapping[str, str], stated: Mapping[str, Any]) -> None:
        visit = _visit.get()
        if stated["size"] is not None:
            _check_size(visit.services, stated["size"])
        data = {"metadata": metadata, "size": stated["size"]}
        upload = opened(visit, "", data)
        statement_of(upload)
        await visit.services.batches.check_accepts(visit.caller.tenant_id, upload.batch_id, upload.name)

    return check


Completion = Callable[[str, Mapping[str, str]], Awaitable[None]]


async def _joining() -> Completion:
    """Makes the file when the last byte has come."""

    async def complete(upload_id: str, _metadata: Mapping[str, str]) -> None:
        visit = _visit.get()
        upload = await visit.find(upload_id)
        if upload is not None:
            await join(visit, upload)

    return complete


router = APIRouter(tags=["files"])


@router.options(PREFIX, status_code=204, include_in_schema=False)
@router.options(PREFIX + "/", status_code=204, include_in_schema=False)
async def tell_abilities(response: Response, services: ServicesOf) -> None:
    """What of tus is spoken here; the library would name extensions that these parts do not serve."""
    response.headers["Tus-Resumable"] = response.headers["Tus-Version"] = TUS_VERSION
    response.headers["Tus-Extension"] = EXTENSIONS
    response.headers["Tus-Max-Size"] = str(services.limits.max_file_bytes)


router.include_router(
    create_tus_router(
        prefix=PREFIX,
        max_size=_NO_LIMIT,
        days_to_keep=RESUMABLE_FOR.days,
        # it awaits what they answer, which its types do not tell
        pre_create_dep=cast("Any", _opening),
        upload_complete_dep=cast("Any", _joining),
        storage=PartStorage(),
    ),
    dependencies=[Depends(_enter)],
    # tus is a protocol of its own: docs/uploads.md
    include_in_schema=False,
)
