"""Structured logs and figures of one process."""

import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import orjson
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from db.postgres.ledger_writer import WAIT_BOUNDS_SECONDS, LedgerWriter, Waits
from domain.errors import RedisUnavailable
from runtime.resources import Resources
from runtime.settings import LogSettings

POOL_STATS_SECONDS = 60
_POOL_STATS_EVERY_SECONDS = 20


def configure_logs(settings: LogSettings, *, process: str) -> None:
    """Every log line, ours and the libraries', goes to standard error in one form, with its context."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    renderer: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=json_line)]
        if settings.format == "json"
        # plain tracebacks: the default ones run to thousands of lines and show variables, answers among them
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    # what no line of ours says costs a fourth of each (the standard library's "Optimization")
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    vars(logging)["_srcfile"] = None
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.level.upper())
    structlog.contextvars.bind_contextvars(process=process)
    for noisy in ("uvicorn.access", "httpx", "httpcore", "psycopg.pool"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def json_line(line: object, default: Callable[[object], object]) -> str:
    """The line as JSON; `default` says how to write what JSON has no form for."""
    # a dataclass by its `repr`, which may leave out what nobody should read
    options = orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS
    try:
        return orjson.dumps(line, default=default, option=options).decode()
    except TypeError:  # half a surrogate pair, or a number beyond 64 bits
        return json.dumps(line, default=default, ensure_ascii=False)


def instance_name() -> str:
    """This process, as figures name it."""
    return f"{socket.gethostname()}:{os.getpid()}"


class PoolCollector(Collector):
    """The pools' figures (G9)."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Prometheus's hook."""
        active = GaugeMetricFamily(
            "pool_connections_active", "Connections in use.", labels=["pool_type", "instance"]
        )
        waiting = GaugeMetricFamily(
            "pool_requests_waiting", "Callers that wait for a connection.", labels=["pool_type", "instance"]
        )
        degraded = GaugeMetricFamily("degraded", "1 while a resource is absent.", labels=["resource"])
        pg, redis = pool_stats(self._resources)
        active.add_metric(["postgres", instance_name()], pg["active"])
        active.add_metric(["redis", instance_name()], redis["active"])
        waiting.add_metric(["postgres", instance_name()], pg["waiting"])
        degraded.add_metric(["redis"], float(self._resources.redis.degraded))
        yield from (active, waiting, degraded)


#: the writer's counters by their names there
_LEDGER_COUNTERS = {
    "commands": "Commands that were queued.",
    "flushes": "Batches that were committed.",
    "events": "Events that were written.",
    "facts": "Facts that were written.",
    "refused": "Commands that were refused: budgets, fences, conflicts.",
    "isolated": "Batches that were written command by command.",
    "retried": "Batches that were decided again after a lost connection.",
    "overloaded": "Callers that found no place in the queue in time.",
    "unavailable": "Commands without an outcome in time.",
    "buffered": "Commands that were taken while Postgres was away.",
    "reconnects": "Connections of the writer, the first one included.",
}


class LedgerCollector(Collector):
    """What the ledger's writer does (O8); counters are exposed under their name with `_total`."""

    def __init__(self, writer: LedgerWriter) -> None:
        self._writer = writer

    def collect(self) -> Iterator[Metric]:
        """Prometheus's hook."""
        figures = self._writer.figures
        for name, meaning in _LEDGER_COUNTERS.items():
            yield CounterMetricFamily(f"ledger_{name}", meaning, value=getattr(figures, name))
        yield CounterMetricFamily(
            "billing_transaction_rollback_count",
            "Transactions of the ledger that were rolled back.",
            value=figures.rolled_back,
        )
        yield GaugeMetricFamily("ledger_waiting", "Commands in the queue.", value=self._writer.waiting)
        yield _histogram("ledger_hold_seconds", "How long callers waited for a hold.", figures.hold_seconds)
        yield _histogram(
            "ledger_settle_seconds", "How long callers waited for a commit.", figures.settle_seconds
        )


def _histogram(name: str, meaning: str, waits: Waits) -> Metric:
    bounds = [*map(str, WAIT_BOUNDS_SECONDS), "+Inf"]
    return HistogramMetricFamily(
        name,
        meaning,
        buckets=list(zip(bounds, accumulate(waits.counts), strict=True)),
        sum_value=waits.seconds,
    )


def pool_stats(resources: Resources) -> tuple[dict[str, int], dict[str, int]]:
    """What the Postgres and the Redis pool are doing."""
    stats = resources.postgres.stats()
    size, free = stats.get("pool_size", 0), stats.get("pool_available", 0)
    pg = {"size": size, "active": size - free, "waiting": stats.get("requests_waiting", 0)}
    pool = resources.redis.client.connection_pool
    return pg, {"active": len(getattr(pool, "_in_use_connections", ())), "max": pool.max_connections}


def registry(resources: Resources) -> CollectorRegistry:
    """A process's figures, beginning with its pools and its gateway."""
    made = CollectorRegistry()
    made.register(PoolCollector(resources))
    made.register(LedgerCollector(resources.ledger.writer))
    made.register(resources.figures.registry)
    return made


async def publish_pool_stats(resources: Resources) -> None:
    """Keep `pool_stats:pg` and `pool_stats:redis` fresh until cancelled (G1.5)."""
    while True:
        for name, stats in zip(("pg", "redis"), pool_stats(resources), strict=True):
            key = f"pool_stats:{name}"
            try:
                with resources.redis.use() as client:
                    await client.hset(key, instance_name(), json.dumps(stats))
                    await client.expire(key, POOL_STATS_SECONDS)
            except RedisUnavailable:
                break  # figures that may be lost
        await asyncio.sleep(_POOL_STATS_EVERY_SECONDS)
