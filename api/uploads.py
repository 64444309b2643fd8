"""A file arrives, is checked on the way, and is streamed to the object store."""

import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import unquote_to_bytes

import structlog
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict
from starlette.convertors import Convertor, register_url_convertor

from api.bodies import check_length, too_large
from api.dependencies import Services, ServicesOf, Submitter, check_id
from api.errors import answer_error, problems
from api.files import FileView, file_view
from api.idempotency import REPLAYED_HEADER, IdempotencyKey, check_key
from api.multipart import Part, boundary_of, read_parts
from api.wire import MAX_NAME_LENGTH, BatchId, Vin, plain_text
from domain.errors import (
    AssayError,
    DigestMismatch,
    InvalidInput,
    LimitExceeded,
    PoolExhausted,
    Unavailable,
)
from domain.gateway import Caller
from domain.identity import object_key
from domain.ports import StoredUpload, Upload

log = structlog.get_logger(__name__)

router = APIRouter(prefix="/v1/batches", tags=["files"])

DIGEST_HEADER = "X-Content-SHA256"

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class _FileName(Convertor[str]):
    """Anything after `/files/`, line ends too: what is no name is refused with a reason, not with a 404."""

    regex = r"[\s\S]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("file_name", _FileName())


@dataclass(frozen=True)
class Statement:
    """What a client says of a file."""

    name: str
    sha256: str | None = None
    size_bytes: int | None = None
    vehicle_id: str = ""
    vin: str = ""
    overwrite: bool = False


@dataclass
class Arrival:
    """The bytes of one file on their way: counted, hashed and held to what was stated."""

    statement: Statement
    max_bytes: int
    size_bytes: int = 0
    #: why the stream was broken off; a store may wrap what is raised through it
    failure: BaseException | None = None
    _digest: Any = field(default_factory=hashlib.sha256)

    @property
    def sha256(self) -> str:
        """The digest of what was hashed, in hex."""
        return str(self._digest.hexdigest())

    def hash(self, chunk: bytes) -> None:
        """The next bytes; by a thread where they are many."""
        self._digest.update(chunk)

    async def counted(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The chunks; raises at the first byte too many."""
        try:
            async for chunk in chunks:
                self._count(chunk)
                if chunk:
                    yield chunk
        except BaseException as error:
            self.failure = error
            raise

    def check(self) -> None:
        """Raise `DigestMismatch` unless all that has arrived and was hashed is what was stated."""
        stated = self.statement
        if stated.size_bytes is not None and stated.size_bytes != self.size_bytes:
            raise _other_size(stated.name, stated.size_bytes, f"{self.size_bytes:,}")
        if stated.sha256 is not None and stated.sha256.lower() != self.sha256:
            raise DigestMismatch(
                f"{stated.name}: the bytes have the SHA-256 {self.sha256}, not the stated {stated.sha256}. "
                "Nothing was kept; upload the file again.",
                field="sha256",
            )

    def _count(self, chunk: bytes) -> None:
        self.size_bytes += len(chunk)
        if self.size_bytes > self.max_bytes:
            raise too_large("file", self.max_bytes, "max_file_bytes")
        stated = self.statement.size_bytes
        if stated is not None and self.size_bytes > stated:
            raise _other_size(self.statement.name, stated, f"more than {stated:,}")


class UploadedFiles(BaseModel):
    """The files of one multipart request, in its order."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"files": [FileView.model_json_schema()["examples"][0]]}]}
    )

    files: list[FileView]


_FILE_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_MULTIPART_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "array", "items": {"type": "string", "format": "binary"}},
                    },
                }
            }
        },
    }
}

Overwrite = Annotated[bool, Query(description="Replace a file of the same name and other content.")]
VehicleId = Annotated[str, Query(max_length=255, description="The vehicle that the file is of.")]
VinQuery = Annotated[Vin, Query(description="Its identification number: at most 17 letters and digits.")]
_DigestHeader = Annotated[
    str | None, Header(alias=DIGEST_HEADER, description="As `sha256`; for clients that sign headers.")
]
_NamePath = Annotated[
    str,
    Path(
        description="The file's name, percent-encoded: data, at most 255 characters, '/' (%2F) included.",
        examples=["group B%2F李雷.txt"],
    ),
]


async def _statement(
    request: Request,
    caller: Submitter,
    name: _NamePath,
    sha256: Annotated[str | None, Query(description="The SHA-256 of the bytes, in hex.")] = None,
    size: Annotated[int | None, Query(ge=0, description="The number of bytes.")] = None,
    vehicle_id: VehicleId = "",
    vin: VinQuery = "",
    overwrite: Overwrite = False,
    sha256_header: _DigestHeader = None,
) -> Statement:
    _check_utf8(request)
    return Statement(
        name=check_name(name),
        sha256=check_digest(sha256 or sha256_header),
        size_bytes=size,
        vehicle_id=check_text("vehicle_id", vehicle_id),
        vin=vin,
        overwrite=overwrite,
    )


@router.put(
    "/{batch_id}/files/{name:file_name}",
    status_code=201,
    summary="Upload a file",
    description="Streams the body to the object store. The same name with the same content is a no-op "
    "(200); with other content a 409, unless `overwrite=true`. A stated digest or size that does not hold "
    "rejects the file and keeps nothing.",
    responses={
        200: {"model": FileView, "description": "The file was there, or replaced one of its name."},
        **problems(401, 403, 404, 409, 413, 422, 503),
    },
    openapi_extra=_FILE_BODY,
)
async def put_file(
    batch_id: BatchId,
    request: Request,
    response: Response,
    caller: Submitter,
    services: ServicesOf,
    statement: Annotated[Statement, Depends(_statement)],
) -> FileView:
    """The stored file."""
    check_length(request, services.limits.max_file_bytes, "max_file_bytes")
    stored = await store_upload(services, caller, check_id("batch", batch_id), statement, request.stream())
    response.status_code = 201 if stored.created else 200
    return file_view(stored.file)


@router.post(
    "/{batch_id}/files",
    status_code=201,
    summary="Upload several files",
    description="A multipart body, streamed. The first file that is refused ends the request with its "
    "problem, whose `stored` lists the files before it; repeating the request is safe, for what is there "
    "is a no-op. A part may carry its own `X-Content-SHA256`. With an `Idempotency-Key`, a request whose "
    "files were all there is answered as a repetition.",
    responses={
        200: {"model": UploadedFiles, "description": "All files were there, or replaced others."},
        **problems(401, 403, 404, 409, 413, 422, 503),
    },
    openapi_extra=_MULTIPART_BODY,
    response_model=UploadedFiles,
)
async def post_files(
    batch_id: BatchId,
    request: Request,
    response: Response,
    caller: Submitter,
    services: ServicesOf,
    vehicle_id: VehicleId = "",
    vin: VinQuery = "",
    overwrite: Overwrite = False,
    idempotency_key: IdempotencyKey = None,
) -> UploadedFiles | Response:
    """The stored files."""
    if idempotency_key is not None:
        check_key(idempotency_key)
    common = Statement("", vehicle_id=check_text("vehicle_id", vehicle_id), vin=vin, overwrite=overwrite)
    batch_id = check_id("batch", batch_id)
    stored: list[StoredUpload] = []
    try:
        boundary = boundary_of(request.headers.get("content-type", ""))
        async with aclosing(read_parts(request.stream(), boundary)) as parts:
            async for part in parts:
                _check_count(len(stored) + 1, services.limits.max_files)
                statement = _part_statement(part, common)
                stored.append(await store_upload(services, caller, batch_id, statement, part.chunks))
        if not stored:
            raise InvalidInput("The body has no file; send each as a part with a filename.", field="body")
    except AssayError as error:
        kept = [file_view(each.file).model_dump(mode="json") for each in stored]
        return answer_error(request.scope, error, stored=kept)
    created = any(each.created for each in stored)
    response.status_code = 201 if created else 200
    if idempotency_key is not None and not any(each.created or each.replaced_object_key for each in stored):
        # name and content are the true key of an upload; the request was made before
        response.headers[REPLAYED_HEADER] = "true"
    return UploadedFiles(files=[file_view(each.file) for each in stored])


async def store_upload(
    services: Services, caller: Caller, batch_id: str, statement: Statement, chunks: AsyncIterator[bytes]
) -> StoredUpload:
    """Stream the file to the object store and write its row; what is refused leaves nothing behind."""
    await services.batches.check_accepts(caller.tenant_id, batch_id, statement.name)
    arrival = Arrival(statement, services.limits.max_file_bytes)
    # an id for each attempt: two uploads of one name never write, or remove, each other's object
    file_id = services.new_id()
    landing = f"uploads/{file_id}"
    written = [landing]
    try:
        await _land(services, landing, arrival, chunks)
        arrival.check()
        key = object_key(caller.tenant_id, batch_id, file_id, arrival.sha256)
        written.append(key)
        await services.objects.rename(landing, key)
    except BaseException:
        await discard(services, *written)
        raise
    upload = Upload(
        file_id=file_id,
        name=statement.name,
        object_key=key,
        size_bytes=arrival.size_bytes,
        sha256=arrival.sha256,
        vehicle_id=statement.vehicle_id,
        vin=statement.vin,
    )
    return await _record(services, caller, batch_id, upload, overwrite=statement.overwrite)


async def _land(services: Services, key: str, arrival: Arrival, chunks: AsyncIterator[bytes]) -> None:
    try:
        await services.objects.write(key, arrival.counted(chunks), arrival.hash)
    except Exception as error:
        if arrival.failure is not None and arrival.failure is not error:
            # the store says that its stream broke; the client is told why
            raise arrival.failure from error
        raise


async def _record(
    services: Services, caller: Caller, batch_id: str, upload: Upload, *, overwrite: bool
) -> StoredUpload:
    try:
        stored = await services.batches.add_file(caller.tenant_id, batch_id, upload, overwrite=overwrite)
    except Exception as error:
        if isinstance(error, Unavailable) and not isinstance(error, PoolExhausted):
            # the commit may have happened: an object without a row is waste, a row without one is a loss
            log.warning("upload_in_doubt", object_key=upload.object_key, code=error.code)
        else:
            await discard(services, upload.object_key)
        raise
    if stored.file.object_key != upload.object_key:
        await discard(services, upload.object_key)
    if stored.replaced_object_key not in (None, stored.file.object_key):
        await discard(services, str(stored.replaced_object_key))
    return stored


async def discard(services: Services, *keys: str) -> None:
    """Remove objects that nothing refers to; a store that does not answer keeps them for the sweeper."""
    for key in keys:
        try:
            await services.objects.delete(key)
        except Unavailable as error:
            log.warning("object_left_behind", object_key=key, code=error.code)


def _part_statement(part: Part, common: Statement) -> Statement:
    head = part.head
    if head.file_name is None:
        raise InvalidInput(
            f"{head.field_name}: a form field and no file; vehicle_id, vin and overwrite go into the query.",
            field=head.field_name,
        )
    return Statement(
        name=check_name(head.file_name),
        sha256=check_digest(head.headers.get(DIGEST_HEADER.lower())),
        vehicle_id=common.vehicle_id,
        vin=common.vin,
        overwrite=common.overwrite,
    )


def _check_count(count: int, at_most: int) -> None:
    if count > at_most:
        raise LimitExceeded(f"The request has more than {at_most:,} files (max_files).", field="body")


def check_name(name: str) -> str:
    """The name, if a file can have it; raises `InvalidInput`."""
    if not 1 <= len(name) <= MAX_NAME_LENGTH:
        raise InvalidInput(
            f"name: {len(name)} characters; between 1 and {MAX_NAME_LENGTH} are possible.", field="name"
        )
    return check_text("name", name)


def check_text(name: str, text: str) -> str:
    """The text, if it is plain; raises `InvalidInput`."""
    try:
        return plain_text(text)
    except ValueError as error:
        raise InvalidInput(f"{name}: {error}; send text without control characters.", field=name) from error


def check_digest(digest: str | None) -> str | None:
    """The digest, if it can be a SHA-256 in hex; raises `InvalidInput`."""
    if digest is not None and not _SHA256.fullmatch(digest):
        raise InvalidInput("sha256: expected 64 hexadecimal digits.", field="sha256")
    return digest


def _check_utf8(request: Request) -> None:
    """Servers replace what is no UTF-8 in a path: two names would become one."""
    try:
        unquote_to_bytes(request.scope.get("raw_path", b"")).decode()
    except UnicodeDecodeError as error:
        raise InvalidInput("name: not UTF-8 after percent-decoding.", field="name") from error


def _other_size(name: str, stated: int, found: str) -> DigestMismatch:
    return DigestMismatch(
        f"{name}: {found} bytes arrived, {stated:,} were stated. Nothing was kept; upload the file again.",
        field="size",
    )
