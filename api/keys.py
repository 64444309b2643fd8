"""API keys: made, shown once, limited, revoked; each admin key manages the keys of its own tenant."""

from datetime import datetime
from typing import Annotated, Any, Self, cast

from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from api.bodies import body_schema, parse_body, read_body
from api.dependencies import Admin, Services, ServicesOf, check_id
from api.errors import problems
from api.idempotency import REPLAYED_HEADER, Creation, IdempotencyKey, create_once, request_fingerprint
from api.money import parse_optional_usd
from api.pages import Page, PageNumber, PageSize
from api.wire import PlainText, Time
from domain.completion import DEFAULT_MAX_TOKENS
from domain.errors import InvalidInput
from domain.keys import (
    KEY_SCOPES,
    MAX_CALLS_AT_ONCE,
    MAX_MODELS,
    MAX_NAME_LENGTH,
    MAX_PATTERN_LENGTH,
    MAX_REPLY_TOKENS,
    MAX_REQUESTS_PER_MINUTE,
    MAX_TOKENS_PER_MINUTE,
    ApiKey,
    KeyChanges,
    KeyScope,
    KeyState,
    KeyTerms,
    MadeKey,
    check_expiry,
)
from domain.ledger import Mode
from domain.money import Money

router = APIRouter(prefix="/v1/keys", tags=["keys"])

_ID = "0197c1de-5555-7000-8000-000000000000"
EXAMPLE: dict[str, Any] = {
    "key_id": _ID,
    "prefix": "assay_3kQz7w",
    "name": "Ms Li's course",
    "state": "active",
    "scopes": ["submit", "read"],
    "profile": "networks",
    "models": ["openai:*", "local"],
    "default_max_tokens": DEFAULT_MAX_TOKENS,
    "requests_per_minute": 60,
    "tokens_per_minute": None,
    "max_concurrent": 4,
    "limit_usd": "25.00",
    "spent_usd": "3.1415",
    "held_usd": "0.02",
    "left_usd": "21.8385",
    "requests": 812,
    "tokens": 1_250_000,
    "mode": None,
    "created_at": "2026-01-02T03:04:05+00:00",
    "expires_at": "2027-01-01T00:00:00+00:00",
    "revoked_at": None,
}
_SECRET = "assay_3kQz7wXo0v1yUu9mS6cYt4hJ8bN2pRqLdGfAeKiVwZs"  # noqa: S105  # an example, of no key

KeyId = Annotated[str, Path(description="The key's id.", examples=[_ID])]
OptionalUsd = Annotated[
    int | None,
    BeforeValidator(parse_optional_usd, json_schema_input_type=str | None),
    Field(description='Dollars as a decimal string such as "25.00"; null for no limit.'),
]


class RateRequest(BaseModel):
    """Limits of rate and concurrency; null for none."""

    model_config = ConfigDict(extra="forbid", strict=True)

    requests_per_minute: int | None = Field(None, ge=1, le=MAX_REQUESTS_PER_MINUTE)
    tokens_per_minute: int | None = Field(None, ge=1, le=MAX_TOKENS_PER_MINUTE)
    max_concurrent: int | None = Field(None, ge=1, le=MAX_CALLS_AT_ONCE, description="Calls at once.")


class KeyTermsRequest(RateRequest):
    """What a key may be given when it is made, and later."""

    profile: PlainText = Field("", max_length=100, description="A budget that its calls count against, too.")
    models: list[Annotated[PlainText, Field(min_length=1, max_length=MAX_PATTERN_LENGTH)]] = Field(
        [], max_length=MAX_MODELS, description="Patterns such as openai:*; none for all models."
    )
    default_max_tokens: int = Field(
        DEFAULT_MAX_TOKENS, ge=1, le=MAX_REPLY_TOKENS, description="Of a reply, where a call does not say."
    )
    limit_usd: OptionalUsd = None
    mode: Mode | None = Field(None, description="What calls do while the budget is not known for certain.")
    expires_at: AwareDatetime | None = Field(None, description="RFC 3339 with offset; null for never.")

    def stated(self) -> dict[str, Any]:
        """What the request states, in the domain's words."""
        return dict(_in_terms(name, getattr(self, name)) for name in self.model_fields_set)


class KeyRequest(KeyTermsRequest):
    """A key that shall be made."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "Ms Li's course",
                    "scopes": ["submit", "read"],
                    "profile": "networks",
                    "models": ["openai:*", "local"],
                    "limit_usd": "25.00",
                    "requests_per_minute": 60,
                    "expires_at": "2027-01-01T00:00:00Z",
                }
            ]
        }
    )

    name: PlainText = Field(min_length=1, max_length=MAX_NAME_LENGTH)
    scopes: list[KeyScope] = Field(
        min_length=1, max_length=len(KEY_SCOPES), description="What it may do; admin implies all others."
    )

    def terms(self) -> KeyTerms:
        """The request in the domain's words; raises `InvalidInput`."""
        return KeyTerms(**self.stated())


class KeyChangesRequest(KeyTermsRequest):
    """Terms of a key that shall change; those that are left out stay."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"limit_usd": "50.00", "max_concurrent": None}]}
    )

    name: PlainText = Field("", min_length=1, max_length=MAX_NAME_LENGTH)

    def changes(self) -> KeyChanges:
        """The changes; raises `InvalidInput` if there are none."""
        if not (stated := self.stated()):
            raise InvalidInput("body: state at least one field that shall change.", field="body")
        return cast("KeyChanges", stated)


def _in_terms(name: str, value: Any) -> tuple[str, Any]:
    if name == "limit_usd":
        return "limit", None if value is None else Money(value)
    return name, tuple(value) if isinstance(value, list) else value


class KeyView(BaseModel):
    """A key, without its secret, and what was spent with it."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    key_id: str
    prefix: str
    name: str
    state: KeyState
    scopes: list[KeyScope]
    profile: str
    models: list[str]
    default_max_tokens: int
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_concurrent: int | None
    limit_usd: str | None
    spent_usd: str
    held_usd: str
    left_usd: str | None
    requests: int
    tokens: int
    mode: Mode | None
    created_at: Time
    expires_at: Time | None
    revoked_at: Time | None

    @classmethod
    def of(cls, key: ApiKey, now: datetime, **more: Any) -> Self:
        """The key as the API shows it."""
        terms, balance = key.terms, key.balance
        same = ("name", "profile", "default_max_tokens", "mode", "expires_at")
        rates = ("requests_per_minute", "tokens_per_minute", "max_concurrent")
        return cls(
            key_id=key.id,
            prefix=key.prefix,
            state=key.state(now),
            scopes=list(terms.scopes),
            models=list(terms.models),
            limit_usd=usd(balance.limit),
            spent_usd=balance.spent.usd,
            held_usd=balance.held.usd,
            left_usd=usd(balance.left),
            requests=balance.requests,
            tokens=balance.tokens,
            created_at=key.created_at,
            revoked_at=key.revoked_at,
            **{name: getattr(terms, name) for name in (*same, *rates)},
            **more,
        )


class MadeKeyView(KeyView):
    """A key that was just made, with its secret; null for a repetition, which cannot know it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**EXAMPLE, "secret": _SECRET}]})

    secret: str | None = Field(description="Shown this once: only its hash is stored.")


class RevokedKeyView(KeyView):
    """A key that was revoked, and what follows from it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {**EXAMPLE, "state": "revoked", "revoked_at": EXAMPLE["created_at"], "warning": None}
            ]
        }
    )

    warning: str | None


async def _requested(request: Request, caller: Admin, services: ServicesOf) -> KeyRequest:
    return parse_body(KeyRequest, await read_small_body(request, services))


async def _changes(request: Request, caller: Admin, services: ServicesOf) -> KeyChangesRequest:
    return parse_body(KeyChangesRequest, await read_small_body(request, services))


@router.post(
    "",
    status_code=201,
    summary="Make a key",
    description="The secret is in this answer and never again. A repetition under the same `Idempotency-Key` "
    "makes no second key: it answers the key with `secret: null` and `Idempotency-Replayed: true`. Whoever "
    "lost the first answer revokes that key and makes another under a new `Idempotency-Key`.",
    responses=problems(401, 403, 409, 413, 422, 503),
    openapi_extra=body_schema(KeyRequest),
)
async def create_key(
    response: Response,
    caller: Admin,
    services: ServicesOf,
    requested: Annotated[KeyRequest, Depends(_requested)],
    idempotency_key: IdempotencyKey = None,
) -> MadeKeyView:
    """The key with its secret."""
    terms, now = requested.terms(), services.clock.now()
    check_expiry(terms.expires_at, now)

    async def known(key_id: str) -> MadeKey:
        return MadeKey(await services.keys.read(caller.tenant_id, key_id), None)

    creation = Creation(
        create=lambda key_id: services.keys.create(caller.tenant_id, key_id, terms), read=known
    )
    fingerprint = request_fingerprint("key", requested.model_dump_json().encode())
    made = (await create_once(services, caller.tenant_id, idempotency_key, fingerprint, creation)).created
    say_whether_made(response, made)
    response.headers["Location"] = f"/v1/keys/{made.key.id}"
    return MadeKeyView.of(made.key, now, secret=made.secret)


@router.get(
    "",
    summary="List the keys",
    description="Newest first; expired and revoked ones, too.",
    responses=problems(401, 403, 422, 503),
)
async def list_keys(
    caller: Admin, services: ServicesOf, page: PageNumber = 1, page_size: PageSize = 20
) -> Page[KeyView]:
    """One page of the tenant's keys."""
    keys, total = await services.keys.list_of_tenant(caller.tenant_id, page, page_size)
    now = services.clock.now()
    return Page(items=[KeyView.of(each, now) for each in keys], page=page, page_size=page_size, total=total)


@router.get(
    "/{key_id}",
    summary="Read a key",
    description="Its terms, and what was spent with it.",
    responses=problems(401, 403, 404, 422, 503),
)
async def read_key(key_id: KeyId, caller: Admin, services: ServicesOf) -> KeyView:
    """The key."""
    return KeyView.of(
        await services.keys.read(caller.tenant_id, check_id("key", key_id)), services.clock.now()
    )


@router.patch(
    "/{key_id}",
    summary="Change a key",
    description="All of what is stated changes, or none of it; it holds for the next request. Scopes never "
    "change: make another key.",
    responses=problems(401, 403, 404, 409, 413, 422, 503),
    openapi_extra=body_schema(KeyChangesRequest),
)
async def change_key(
    key_id: KeyId,
    caller: Admin,
    services: ServicesOf,
    requested: Annotated[KeyChangesRequest, Depends(_changes)],
) -> KeyView:
    """The key as it is now."""
    changes, now = requested.changes(), services.clock.now()
    check_expiry(changes.get("expires_at"), now)
    return KeyView.of(await services.keys.change(caller.tenant_id, check_id("key", key_id), changes), now)


@router.delete(
    "/{key_id}",
    summary="Revoke a key",
    description="For ever, from the next request on, also the key that asks for it; calls under way are "
    "settled. The key stays readable. `warning` says when no admin key is left. A repetition changes "
    "nothing.",
    responses=problems(401, 403, 404, 422, 503),
)
async def revoke_key(key_id: KeyId, caller: Admin, services: ServicesOf) -> RevokedKeyView:
    """The revoked key."""
    revoked = await services.keys.revoke(caller.tenant_id, check_id("key", key_id))
    return RevokedKeyView.of(revoked.key, services.clock.now(), warning=revoked.warning)


async def read_small_body(request: Request, services: Services) -> bytes:
    """The body of a request that has no file in it."""
    return await read_body(request, services.limits.max_body_bytes, "max_body_bytes")


def say_whether_made(response: Response, made: MadeKey) -> None:
    """Say in the response that nothing was made now, and that nobody may keep it."""
    response.headers["Cache-Control"] = "no-store"
    if made.secret is None:
        response.headers[REPLAYED_HEADER] = "true"


def usd(amount: Money | None) -> str | None:
    """The amount as a decimal string, if there is one."""
    return None if amount is None else amount.usd
