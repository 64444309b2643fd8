"""The API server: puts the real things behind the API's ports and serves them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.dependencies import LifespanState, Limits, Services
from api.metrics import ApiMetrics
from db.client_calls import StoredClientCalls
from db.postgres.baselines import PostgresBaselines
from db.postgres.batches import PostgresBatches
from db.postgres.conversations import PostgresConversations
from db.postgres.costs import PostgresCosts
from db.postgres.diagnosis_reports import PostgresDiagnosisReports
from db.postgres.exams import PostgresExams
from db.postgres.external_events import PostgresExternalEvents
from db.postgres.overrides import PostgresOverrides
from db.postgres.pauses import PostgresPauses
from db.postgres.prices import PostgresPrices, PostgresTokenRatios
from db.postgres.reports import PostgresResults
from db.postgres.reruns import PostgresReruns
from db.postgres.tenants import PostgresIdempotencyKeys, PostgresKeys, PostgresTenants
from db.postgres.thread_history import PostgresThreadHistory
from db.postgres.uploads import PostgresResumableUploads
from db.redis.cache import RedisReportCache, RedisResultCache
from db.redis.diagnosis_texts import RedisDiagnosisTexts
from db.redis.progress import RedisProgressBell, RedisStatePublisher
from db.redis.workflow_events import RedisWorkflowEvents
from db.states import StoredAgentStates
from domain.gateway import Completions
from gateway.catalogue import canonical_name, catalogue
from runtime.gateway import door, known_models, models
from runtime.orchestrator import TemporalOrchestrator
from runtime.resources import Resources, connect_temporal, in_background, open_resources
from runtime.settings import Settings
from runtime.telemetry import publish_pool_stats, registry


def services(
    resources: Resources, server: uvicorn.Server | None = None, completions: Completions | None = None
) -> Services:
    """The real things behind the API's ports; `completions` can be others than the door to every model."""
    postgres, redis, settings = resources.postgres, resources.redis, resources.settings
    client_calls = StoredClientCalls(resources.ledger.books, redis, resources.clock)
    resources.ends.push_async_callback(client_calls.close)
    orchestrator = TemporalOrchestrator(resources.temporal, settings.temporal, settings.worker)
    return Services(
        exams=PostgresExams(postgres),
        baselines=PostgresBaselines(postgres),
        batches=PostgresBatches(postgres, max_tenant_bytes=settings.api.max_tenant_bytes),
        resumptions=PostgresPauses(postgres),
        reruns=PostgresReruns(postgres),
        thread_history=PostgresThreadHistory(postgres),
        overrides=PostgresOverrides(postgres),
        prices=PostgresPrices(postgres, catalogue=catalogue, canonical=canonical_name),
        token_ratios=PostgresTokenRatios(postgres),
        results=PostgresResults(postgres),
        diagnosis_reports=PostgresDiagnosisReports(postgres),
        diagnosis_deltas=RedisDiagnosisTexts(redis),
        result_cache=RedisResultCache(redis),
        report_cache=RedisReportCache(redis),
        keys=PostgresKeys(postgres),
        tenants=PostgresTenants(postgres),
        costs=PostgresCosts(postgres, resources.ledger.books),
        operator_tenant=settings.tenant_id,
        workflow_events=PostgresExternalEvents(postgres),
        event_channel=RedisWorkflowEvents(redis),
        locks=resources.locks,
        idempotency_keys=PostgresIdempotencyKeys(postgres),
        objects=resources.objects,
        resumable_uploads=PostgresResumableUploads(postgres),
        bell=RedisProgressBell(resources.hub),
        orchestrator=orchestrator,
        agent_states=StoredAgentStates(RedisStatePublisher(redis), postgres),
        pinged={
            "postgres": postgres,
            "redis": redis,
            "temporal": orchestrator,
            "objects": resources.objects,
        },
        degraded=lambda: ["redis"] if redis.degraded else [],
        clock=resources.clock,
        models=known_models(settings.models),
        metrics=ApiMetrics(registry(resources)),
        completions=completions or door(resources, models(settings.models)),
        client_calls=client_calls,
        conversations=PostgresConversations(postgres),
        limits=Limits(max_file_bytes=settings.api.max_file_bytes),
        draining=lambda: server is not None and server.should_exit,
    )


def make_server(settings: Settings) -> uvicorn.Server:
    """The API's server, not running yet; it opens its resources when it starts."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[LifespanState]:
        temporal = await connect_temporal(settings, name="assay-api", lazy=True)
        async with open_resources(
            settings, name="assay-api", temporal=temporal, check_connections=True
        ) as resources:
            if settings.api.key is not None:
                keys = PostgresKeys(resources.postgres)
                await keys.ensure(settings.tenant_id, "Local", "local", settings.api.key.get_secret_value())
            async with in_background(publish_pool_stats(resources)):
                yield {"services": services(resources, server)}

    server = uvicorn.Server(
        uvicorn.Config(
            create_app(lifespan),
            host=settings.api.host,
            port=settings.api.port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=10,
            server_header=False,
        )
    )
    return server


async def serve(settings: Settings) -> None:
    """Serve the API until SIGTERM or SIGINT."""
    await make_server(settings).serve()
