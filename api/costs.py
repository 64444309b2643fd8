"""What a tenant has spent: balances, the statement, days, today (L8)."""

import json
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict

from api.dependencies import Reader, Services, ServicesOf
from api.errors import problems
from api.keys import usd
from api.pages import Page, PageNumber, PageSize
from api.wire import PlainText, Time
from domain.errors import InvalidInput
from domain.ledger import AccountBalance, DaySpend, EventStatus, EventType, LedgerEvent, Scope

router = APIRouter(prefix="/v1/costs", tags=["costs"])

MAX_DAYS = 3_660
_DEFAULT_DAYS = 30

_BALANCE: dict[str, Any] = {
    "scope": "profile",
    "subject": "networks",
    "limit_usd": "100.00",
    "held_usd": "0.10",
    "spent_usd": "12.345",
    "left_usd": "87.555",
    "requests": 3_120,
    "tokens": 4_800_000,
}
_DAY: dict[str, Any] = {
    "day": "2026-01-02",
    "spent_usd": "1.2345",
    "held_usd": "0.00",
    "requests": 311,
    "tokens": 480_000,
}
_EVENT: dict[str, Any] = {
    "event_id": "8c4f9d52-0c6c-5d3a-9a54-6a3f2d7be901",
    "event_type": "commit",
    "status": "ok",
    "call_id": "2f1f2a0e-9f3e-5a86-8a7b-0d8f1c9f6e11",
    "attempt": 1,
    "reference": "",
    "api_key_id": "",
    "batch_id": "0197c1de-1111-7000-8000-000000000000",
    "profile": "networks",
    "file_id": "0197c1de-3333-7000-8000-000000000000",
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "provider": "openai",
    "model": "gpt-4o-mini",
    "usage": {"tokens_in": 1_900, "tokens_out": 310, "tokens_cached": 0},
    "rates": {"version": "2", "nanodollars_per_million": {"tokens_in": 150_000_000}},
    "estimated_usd": "0.002",
    "actual_usd": "0.000471",
    "ttft_ms": None,
    "total_ms": 2_140,
    "day": "2026-01-02",
    "hold_day": "2026-01-02",
    "occurred_at": "2026-01-02T03:04:05+00:00",
}
_TODAY: dict[str, Any] = {
    "day": "2026-01-02",
    "scope": "profile",
    "profile": "networks",
    "spent_usd": "1.2345",
}

#: a call itself has no account
AccountScope = Literal["api_key", "batch", "profile", "tenant_day"]
First = Annotated[date | None, Query(description="The first day, in the tenant's time zone.")]
Last = Annotated[date | None, Query(description="The last day; today by default.")]


class BalanceView(BaseModel):
    """An account: its limit, what is held, what was spent, what is left."""

    model_config = ConfigDict(json_schema_extra={"examples": [_BALANCE]})

    scope: Scope
    subject: str
    limit_usd: str | None
    held_usd: str
    spent_usd: str
    left_usd: str | None
    requests: int
    tokens: int

    @classmethod
    def of(cls, balance: AccountBalance) -> Self:
        """The account as the API shows it."""
        return cls(
            scope=balance.account.scope,
            subject=balance.account.subject,
            limit_usd=usd(balance.limit),
            held_usd=balance.held.usd,
            spent_usd=balance.spent.usd,
            left_usd=usd(balance.left),
            requests=balance.requests,
            tokens=balance.tokens,
        )


class DayView(BaseModel):
    """One day of the tenant."""

    model_config = ConfigDict(json_schema_extra={"examples": [_DAY]})

    day: date
    spent_usd: str
    held_usd: str
    requests: int
    tokens: int

    @classmethod
    def of(cls, day: DaySpend) -> Self:
        """The day as the API shows it."""
        return cls(
            day=day.day,
            spent_usd=day.spent.usd,
            held_usd=day.held.usd,
            requests=day.requests,
            tokens=day.tokens,
        )


class EventView(BaseModel):
    """A ledger event; `actual_usd` is what it adds to the money spent."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EVENT]})

    event_id: str
    event_type: EventType
    status: EventStatus
    call_id: str
    attempt: int
    reference: str
    api_key_id: str
    batch_id: str
    profile: str
    file_id: str
    trace_id: str
    provider: str
    model: str
    usage: Mapping[str, Any]
    rates: Mapping[str, Any]
    estimated_usd: str
    actual_usd: str
    ttft_ms: int | None
    total_ms: int | None
    day: date
    hold_day: date
    occurred_at: Time

    @classmethod
    def of(cls, event: LedgerEvent) -> Self:
        """The event as the API shows it."""
        payer, timing = event.payer, event.timing
        what = ("event_type", "status", "attempt", "reference", "file_id", "trace_id")
        how = ("provider", "model", "usage", "day", "hold_day", "occurred_at")
        return cls(
            event_id=str(event.event_id),
            call_id=str(event.call_id),
            api_key_id=payer.api_key_id,
            batch_id=payer.batch_id,
            profile=payer.profile,
            rates=json.loads(event.rates),
            estimated_usd=event.estimated.usd,
            actual_usd=event.actual.usd,
            ttft_ms=timing.ttft_ms,
            total_ms=timing.total_ms,
            **{name: getattr(event, name) for name in (*what, *how)},
        )


class TodayView(BaseModel):
    """What was spent today."""

    model_config = ConfigDict(json_schema_extra={"examples": [_TODAY]})

    day: date
    scope: Literal["all", "profile"]
    profile: str | None
    spent_usd: str


@router.get(
    "/balances",
    summary="List the accounts",
    description="Of keys, batches, profiles and days: those with a limit, and those in which something was "
    "held or spent.",
    responses=problems(401, 403, 422, 503),
)
async def list_balances(
    caller: Reader,
    services: ServicesOf,
    page: PageNumber = 1,
    page_size: PageSize = 20,
    scope: Annotated[AccountScope | None, Query(description="Only accounts of this scope.")] = None,
    subject: Annotated[
        PlainText | None, Query(max_length=255, description="A key's, batch's or profile's id, or a day.")
    ] = None,
) -> Page[BalanceView]:
    """One page of accounts."""
    chosen = None if scope is None else Scope(scope)
    balances, total = await services.costs.balances(
        caller.tenant_id, page, page_size, scope=chosen, subject=subject
    )
    return Page(items=list(map(BalanceView.of, balances)), page=page, page_size=page_size, total=total)


@router.get(
    "/statement",
    summary="List the ledger's events",
    description="Newest first; of today, unless days are stated.",
    responses=problems(401, 403, 422, 503),
)
async def list_events(
    caller: Reader,
    services: ServicesOf,
    page: PageNumber = 1,
    page_size: PageSize = 20,
    first: First = None,
    last: Last = None,
    batch_id: Annotated[
        PlainText | None, Query(max_length=100, description="Only this batch's events.")
    ] = None,
) -> Page[EventView]:
    """One page of events."""
    first, last = await _range(services, caller.tenant_id, first, last, default_days=1)
    events, total = await services.costs.statement(
        caller.tenant_id, page, page_size, first=first, last=last, batch_id=batch_id
    )
    return Page(items=list(map(EventView.of, events)), page=page, page_size=page_size, total=total)


@router.get(
    "/days",
    summary="List what was spent day by day",
    description=f"Newest first, only days on which something was held or spent; of the last {_DEFAULT_DAYS} "
    "days, unless days are stated.",
    responses=problems(401, 403, 422, 503),
)
async def list_days(
    caller: Reader,
    services: ServicesOf,
    page: PageNumber = 1,
    page_size: PageSize = 20,
    first: First = None,
    last: Last = None,
) -> Page[DayView]:
    """One page of days."""
    first, last = await _range(services, caller.tenant_id, first, last, default_days=_DEFAULT_DAYS)
    days = await services.costs.days(caller.tenant_id, first, last)
    chosen = days[(page - 1) * page_size : page * page_size]
    return Page(items=list(map(DayView.of, chosen)), page=page, page_size=page_size, total=len(days))


@router.get(
    "/today",
    summary="Read what was spent today",
    description="In the tenant's time zone; in all, or of one profile.",
    responses=problems(401, 403, 422, 503),
)
async def read_today(
    caller: Reader,
    services: ServicesOf,
    scope: Annotated[Literal["all", "profile"], Query(description="In all, or of one profile.")] = "all",
    profile: Annotated[
        PlainText | None, Query(max_length=100, description="The profile's name, with the scope profile.")
    ] = None,
) -> TodayView:
    """What was spent."""
    spent = await services.costs.spend_today(caller.tenant_id, scope=scope, profile=profile)
    day = await services.costs.today(caller.tenant_id)
    return TodayView(day=day, scope=scope, profile=profile, spent_usd=spent.usd)


async def _range(
    services: Services, tenant_id: str, first: date | None, last: date | None, *, default_days: int
) -> tuple[date, date]:
    last = last or await services.costs.today(tenant_id)
    # counted in ordinals: there is no day before the first one of the calendar
    first = first or date.fromordinal(max(1, last.toordinal() - default_days + 1))
    if not 0 <= last.toordinal() - first.toordinal() < MAX_DAYS:
        raise InvalidInput(f"first: at most {MAX_DAYS:,} days before last, and not after it.", field="first")
    return first, last
