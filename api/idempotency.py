"""`Idempotency-Key`: a creating request that is repeated creates nothing twice."""

import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

import structlog
from fastapi import Header, Response

from api.dependencies import Services
from api.wire import plain_text
from domain.errors import AssayError, InvalidInput, NotFound, Unavailable

log = structlog.get_logger(__name__)

MAX_KEY_LENGTH = 255
REPLAYED_HEADER = "Idempotency-Replayed"

Created = TypeVar("Created")

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="A key of the caller's choice. The same key with the same body is answered with what the "
        "first request created; with another body it is a 409.",
        examples=["6f1c2d1e-open-batch-7"],
    ),
]


@dataclass(frozen=True)
class Once(Generic[Created]):
    """What a request created, or an earlier one with the same key."""

    created: Created
    replayed: bool = False

    def mark(self, response: Response) -> None:
        """Say in the response that nothing was created now."""
        if self.replayed:
            response.headers[REPLAYED_HEADER] = "true"


@dataclass(frozen=True)
class Creation(Generic[Created]):
    """How to create something under a given id, and to read it again."""

    create: Callable[[str], Awaitable[Created]]
    read: Callable[[str], Awaitable[Created]]


def request_fingerprint(kind: str, *content: bytes) -> str:
    """The SHA-256, in hex, of what is asked for."""
    digest = hashlib.sha256(kind.encode())
    for each in content:
        digest.update(b"\0" + each)
    return digest.hexdigest()


async def create_once(
    services: Services, tenant_id: str, key: str | None, fingerprint: str, creation: Creation[Created]
) -> Once[Created]:
    """Create, unless a request with the same key has done so; raises `IdempotencyMismatch`.

    The key is bound to an id before anything is created: a repetition, even one beside the first
    request or after its crash, creates the same thing or finds it.
    """
    new_id = services.new_id()
    if key is None:
        return Once(await creation.create(new_id))
    claim = await services.idempotency_keys.claim(tenant_id, check_key(key), fingerprint, new_id)
    if not claim.first:
        with suppress(NotFound):
            return Once(await creation.read(claim.created_id), replayed=True)
    try:
        return Once(await creation.create(claim.created_id))
    except Unavailable:
        raise  # it may have been created: the claim stays, and the repetition looks
    except AssayError:
        await _release(services, tenant_id, key)
        raise


def check_key(key: str) -> str:
    """The key, if it can be one; raises `InvalidInput`."""
    try:
        plain_text(key)
    except ValueError as error:
        raise InvalidInput(f"Idempotency-Key: {error}.", field="Idempotency-Key") from error
    if not 1 <= len(key) <= MAX_KEY_LENGTH:
        raise InvalidInput(
            f"Idempotency-Key: between 1 and {MAX_KEY_LENGTH} characters.", field="Idempotency-Key"
        )
    return key


async def _release(services: Services, tenant_id: str, key: str) -> None:
    try:
        await services.idempotency_keys.release(tenant_id, key)
    except Unavailable as error:
        # the first error is the answer; the key stays bound to the refused request
        log.warning("idempotency_key_not_released", code=error.code)
