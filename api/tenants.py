"""Tenants: their own settings, their profiles, and the operator's list of all."""

from typing import Annotated, Any, Self, cast

from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from api.bodies import body_schema, parse_body
from api.dependencies import Admin, Services, ServicesOf
from api.errors import problems
from api.idempotency import Creation, IdempotencyKey, create_once, request_fingerprint
from api.keys import (
    EXAMPLE,
    MadeKeyView,
    OptionalUsd,
    RateRequest,
    read_small_body,
    say_whether_made,
    usd,
)
from api.pages import Page, PageNumber, PageSize
from api.wire import PlainText, Time
from domain.errors import Forbidden, InvalidInput
from domain.gateway import Caller
from domain.keys import (
    MAX_NAME_LENGTH,
    KeyTerms,
    MadeKey,
    Tenant,
    TenantChanges,
    TenantTerms,
    check_tenant_id,
)
from domain.ledger import AccountBalance, Mode
from domain.money import Money

router = APIRouter(prefix="/v1", tags=["tenants"])

_TENANT: dict[str, Any] = {
    "tenant_id": "computer-science",
    "name": "Department of Computer Science",
    "time_zone": "Asia/Shanghai",
    "call_limit_usd": "0.50",
    "daily_limit_usd": "20.00",
    "mode": "strict_budget",
    "requests_per_minute": 600,
    "tokens_per_minute": None,
    "max_concurrent": 50,
    "created_at": "2026-01-02T03:04:05+00:00",
}
_PROFILE: dict[str, Any] = {
    "profile": "networks",
    "limit_usd": "100.00",
    "spent_usd": "12.345",
    "held_usd": "0.00",
    "left_usd": "87.655",
    "requests": 3_120,
    "tokens": 4_800_000,
}

ProfileName = Annotated[str, Path(description="The profile's name.", examples=["networks"])]


class TenantChangesRequest(RateRequest):
    """Settings of a tenant that shall change; those that are left out stay."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"time_zone": "Asia/Shanghai", "daily_limit_usd": "20.00"}]}
    )

    name: PlainText = Field("", min_length=1, max_length=MAX_NAME_LENGTH)
    time_zone: PlainText = Field("UTC", max_length=100, description="IANA; the tenant's day begins in it.")
    call_limit_usd: OptionalUsd = None
    daily_limit_usd: OptionalUsd = None
    mode: Mode | None = Field(None, description="What calls do while the budget is not known for certain.")

    def stated(self) -> dict[str, Any]:
        """What is stated, in the domain's words."""
        return {
            name.removesuffix("_usd"): _amount(name, getattr(self, name))
            for name in self.model_fields_set & TenantChangesRequest.model_fields.keys()
        }

    def changes(self) -> TenantChanges:
        """The changes; raises `InvalidInput` if there are none."""
        if not (stated := self.stated()):
            raise InvalidInput("body: state at least one field that shall change.", field="body")
        return cast("TenantChanges", stated)


class TenantRequest(TenantChangesRequest):
    """A tenant that shall be made, with the name of its first admin key."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"tenant_id": "computer-science", "name": "Department of Computer Science"}]
        }
    )

    tenant_id: PlainText = Field(max_length=63, description="Lower-case letters, digits and hyphens.")
    name: PlainText = Field(min_length=1, max_length=MAX_NAME_LENGTH)
    key_name: PlainText = Field("first admin", min_length=1, max_length=MAX_NAME_LENGTH)


class LimitRequest(BaseModel):
    """A profile's budget."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"limit_usd": "100.00"}]}
    )

    limit_usd: OptionalUsd


def _amount(name: str, value: Any) -> Any:
    return Money(value) if name.endswith("_usd") and value is not None else value


class TenantView(BaseModel):
    """A tenant and its settings."""

    model_config = ConfigDict(json_schema_extra={"examples": [_TENANT]})

    tenant_id: str
    name: str
    time_zone: str
    call_limit_usd: str | None
    daily_limit_usd: str | None
    mode: Mode | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_concurrent: int | None
    created_at: Time

    @classmethod
    def of(cls, tenant: Tenant, **more: Any) -> Self:
        """The tenant as the API shows it."""
        terms = tenant.terms
        return cls(
            tenant_id=tenant.id,
            name=terms.name,
            time_zone=terms.time_zone,
            call_limit_usd=usd(terms.call_limit),
            daily_limit_usd=usd(terms.daily_limit),
            mode=terms.mode,
            requests_per_minute=terms.requests_per_minute,
            tokens_per_minute=terms.tokens_per_minute,
            max_concurrent=terms.max_concurrent,
            created_at=tenant.created_at,
            **more,
        )


class MadeTenantView(TenantView):
    """A tenant that was just made, with its first admin key."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{**_TENANT, "key": {**EXAMPLE, "secret": "assay_…"}}]}
    )

    key: MadeKeyView


class ProfileView(BaseModel):
    """A profile: its budget, and what was spent in it."""

    model_config = ConfigDict(json_schema_extra={"examples": [_PROFILE]})

    profile: str
    limit_usd: str | None
    spent_usd: str
    held_usd: str
    left_usd: str | None
    requests: int
    tokens: int

    @classmethod
    def of(cls, balance: AccountBalance) -> Self:
        """The profile as the API shows it."""
        return cls(
            profile=balance.account.subject,
            limit_usd=usd(balance.limit),
            spent_usd=balance.spent.usd,
            held_usd=balance.held.usd,
            left_usd=usd(balance.left),
            requests=balance.requests,
            tokens=balance.tokens,
        )


async def _operator(caller: Admin, services: ServicesOf) -> Caller:
    if caller.tenant_id != services.operator_tenant:
        raise Forbidden("Only admin keys of the installation's own tenant see and make tenants.")
    return caller


Operator = Annotated[Caller, Depends(_operator)]


async def _requested(request: Request, caller: Operator, services: ServicesOf) -> TenantRequest:
    return parse_body(TenantRequest, await read_small_body(request, services))


async def _changes(request: Request, caller: Admin, services: ServicesOf) -> TenantChangesRequest:
    return parse_body(TenantChangesRequest, await read_small_body(request, services))


async def _limit(request: Request, caller: Admin, services: ServicesOf) -> LimitRequest:
    return parse_body(LimitRequest, await read_small_body(request, services))


@router.get(
    "/tenant",
    summary="Read the own tenant",
    description="The settings of the key's tenant.",
    responses=problems(401, 403, 422, 503),
)
async def read_tenant(caller: Admin, services: ServicesOf) -> TenantView:
    """The tenant."""
    return TenantView.of(await services.tenants.read(caller.tenant_id))


@router.patch(
    "/tenant",
    summary="Change the own tenant",
    description="All of what is stated changes, or none of it; it holds for the next call. A mode that was "
    "looked up lasts a minute.",
    responses=problems(401, 403, 413, 422, 503),
    openapi_extra=body_schema(TenantChangesRequest),
)
async def change_tenant(
    caller: Admin, services: ServicesOf, requested: Annotated[TenantChangesRequest, Depends(_changes)]
) -> TenantView:
    """The tenant as it is now."""
    return TenantView.of(await services.tenants.change(caller.tenant_id, requested.changes()))


@router.post(
    "/tenants",
    status_code=201,
    summary="Make a tenant",
    description="With its first admin key, whose secret is in this answer and never again; for admin keys of "
    "the installation's own tenant. A repetition under the same `Idempotency-Key` answers the tenant with "
    "`secret: null`.",
    responses=problems(401, 403, 409, 413, 422, 503),
    openapi_extra=body_schema(TenantRequest),
)
async def create_tenant(
    response: Response,
    caller: Operator,
    services: ServicesOf,
    requested: Annotated[TenantRequest, Depends(_requested)],
    idempotency_key: IdempotencyKey = None,
) -> MadeTenantView:
    """The tenant with its first key."""
    fingerprint = request_fingerprint("tenant", requested.model_dump_json().encode())
    creation = _creation(services, requested)
    once = await create_once(services, caller.tenant_id, idempotency_key, fingerprint, creation)
    tenant, made = once.created
    say_whether_made(response, made)
    key = MadeKeyView.of(made.key, services.clock.now(), secret=made.secret)
    return MadeTenantView.of(tenant, key=key)


def _creation(services: Services, requested: TenantRequest) -> Creation[tuple[Tenant, MadeKey]]:
    tenant_id = check_tenant_id(requested.tenant_id)
    terms = TenantTerms(**requested.stated())
    first = KeyTerms(name=requested.key_name, scopes=("admin",))

    async def known(key_id: str) -> tuple[Tenant, MadeKey]:
        key = await services.keys.read(tenant_id, key_id)
        return await services.tenants.read(tenant_id), MadeKey(key, None)

    return Creation(
        create=lambda key_id: services.tenants.create(tenant_id, terms, key_id, first), read=known
    )


@router.get(
    "/tenants",
    summary="List the tenants",
    description="By id; for admin keys of the installation's own tenant.",
    responses=problems(401, 403, 422, 503),
)
async def list_tenants(
    caller: Operator, services: ServicesOf, page: PageNumber = 1, page_size: PageSize = 20
) -> Page[TenantView]:
    """One page of all tenants."""
    tenants, total = await services.tenants.list_all(page, page_size)
    items = [TenantView.of(each) for each in tenants]
    return Page(items=items, page=page, page_size=page_size, total=total)


@router.get(
    "/profiles/{name}",
    summary="Read a profile",
    description="Its budget, and what was spent in it.",
    responses=problems(401, 403, 404, 422, 503),
)
async def read_profile(name: ProfileName, caller: Admin, services: ServicesOf) -> ProfileView:
    """The profile."""
    return ProfileView.of(await services.tenants.profile(caller.tenant_id, name))


@router.put(
    "/profiles/{name}",
    summary="Set a profile's budget",
    description="A ceiling over all that was ever spent in it, by whichever key.",
    responses=problems(401, 403, 404, 413, 422, 503),
    openapi_extra=body_schema(LimitRequest),
)
async def set_profile(
    name: ProfileName,
    caller: Admin,
    services: ServicesOf,
    requested: Annotated[LimitRequest, Depends(_limit)],
) -> ProfileView:
    """The profile with its new budget."""
    limit = None if requested.limit_usd is None else Money(requested.limit_usd)
    return ProfileView.of(await services.tenants.set_profile(caller.tenant_id, name, limit))
