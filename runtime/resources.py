"""The resources of one process: opened once at the top, passed down, closed in reverse (G1.1)."""

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from temporalio.client import Client
from temporalio.converter import DataConverter

from db.objects.store import ObjectStoreFiles
from db.postgres.ledger import PostgresLedgerBooks
from db.postgres.ledger_port import PostgresLedger
from db.postgres.locks import PostgresAdvisoryLocks, PostgresFences
from db.postgres.pool import APPLICATION_ROLE, Postgres, open_pool
from db.redis.connection import RedisLink
from db.redis.limits import RedisRateLimits
from db.redis.locks import RedisLocks
from db.redis.progress import OUTBOX_BELL, BellHub, progress_channel
from db.redis.quotas import RedisQuotas
from domain.errors import AssayError
from gateway.figures import GatewayFigures
from runtime.event_relay import EventFigures
from runtime.payloads import PayloadLimits, limited
from runtime.settings import Settings

#: how long the end of a process waits for its connections (G1.4)
CLOSE_SECONDS = 30.0
_CANCEL_AGAIN_SECONDS = 0.5


class MissingAddress(AssayError):
    """A server's address is not set, and no embedded stack gave one."""

    code = "missing_address"


class SystemClock:
    """The machine's time."""

    def now(self) -> datetime:
        """The present moment, in UTC."""
        return datetime.now(UTC)


@dataclass(frozen=True)
class Resources:
    """What a process has open."""

    settings: Settings
    postgres: Postgres
    redis: RedisLink
    objects: ObjectStoreFiles
    temporal: Client
    hub: BellHub
    clock: SystemClock
    ledger: PostgresLedger
    limits: RedisRateLimits
    quotas: RedisQuotas
    locks: RedisLocks
    figures: GatewayFigures
    event_figures: EventFigures
    #: what is built upon all of these, and ends before them
    ends: AsyncExitStack


@asynccontextmanager
async def open_resources(
    settings: Settings, *, name: str, temporal: Client, check_connections: bool = False
) -> AsyncIterator[Resources]:
    """Open everything; nothing waits for a server that is away, its first use says so."""
    async with AsyncExitStack() as stack:
        url = required("ASSAY_POSTGRES__URL", settings.postgres.url)
        pool = open_pool(
            url,
            min_size=settings.postgres.min_size,
            max_size=settings.postgres.max_size,
            acquire_timeout_seconds=settings.postgres.acquire_timeout_seconds,
            idle_seconds=settings.postgres.idle_seconds,
            lifetime_seconds=settings.postgres.lifetime_seconds,
            check_on_acquire=check_connections,
            name=name,
            role=APPLICATION_ROLE,
        )
        await pool.open(wait=False)
        stack.push_async_callback(pool.close, CLOSE_SECONDS)
        postgres, clock = Postgres(pool), SystemClock()
        redis = RedisLink.to(
            required("ASSAY_REDIS__URL", settings.redis.url),
            max_connections=settings.redis.max_connections,
            timeout_seconds=settings.redis.timeout_seconds,
        )
        stack.push_async_callback(redis.close)
        figures = GatewayFigures(CollectorRegistry())
        quotas = RedisQuotas(
            redis,
            PostgresLedgerBooks(postgres, clock),
            clock,
            synced=figures.synced,
            dropped=figures.dropped,
            raced=figures.warm_race,
        )
        await stack.enter_async_context(in_background(quotas.run()))
        # it connects with its first call; what its last commits changed is copied before Redis closes
        ledger = PostgresLedger.over(postgres, url, clock, on_committed=quotas.push)
        ledger.start()
        stack.push_async_callback(quotas.close)
        stack.push_async_callback(ledger.close)
        hub = BellHub(redis, progress_channel("*"), OUTBOX_BELL)
        await stack.enter_async_context(in_background(hub.run()))
        objects = ObjectStoreFiles.at(settings.objects_url)
        limits = RedisRateLimits(redis, processes=settings.redis.sharing_processes)
        stack.push_async_callback(limits.close)
        ends = await stack.enter_async_context(AsyncExitStack())
        fences = PostgresFences(postgres)
        locks = RedisLocks(redis, fences, PostgresAdvisoryLocks(url, fences))
        yield Resources(
            settings,
            postgres,
            redis,
            objects,
            temporal,
            hub,
            clock,
            ledger,
            limits,
            quotas,
            locks,
            figures,
            EventFigures(figures.registry),
            ends,
        )


async def connect_temporal(settings: Settings, *, name: str, lazy: bool) -> Client:
    """A client; a lazy one connects on first use, which a worker cannot be built on."""
    return await Client.connect(
        required("ASSAY_TEMPORAL__ADDRESS", settings.temporal.address),
        namespace=settings.temporal.namespace,
        identity=f"{name}@{os.getpid()}",
        lazy=lazy,
        data_converter=limited(DataConverter.default),
        interceptors=[PayloadLimits()],
    )


@asynccontextmanager
async def in_background(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run endless tasks beside the block; one that fails is said, and does not take the block with it."""
    tasks = [asyncio.create_task(each) for each in coroutines]
    for task in tasks:
        task.add_done_callback(_say_failure)
    try:
        yield
    finally:
        await _end(tasks)


async def _end(tasks: "list[asyncio.Task[None]]") -> None:
    # Again and again: until Python 3.12 `asyncio.wait_for`, which the drivers use, swallows a cancellation
    # that comes in the moment of its answer.
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_SECONDS)


def _say_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        structlog.get_logger("assay").error("background_task_failed", exc_info=error)


def required(variable: str, value: SecretStr | str | None) -> str:
    """The address; raises `MissingAddress` where it is not set."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if not value:
        raise MissingAddress(
            f"{variable} is not set. Set it, or run `assay up`, which brings its own servers."
        )
    return value
