"""Whether the process lives and can serve, and its figures."""

import asyncio
from typing import Literal

import structlog
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict

from api.dependencies import Admin, Services, ServicesOf
from api.errors import answer_error, problems
from domain.errors import Unavailable
from domain.ports import Pinged

log = structlog.get_logger(__name__)

router = APIRouter(tags=["health"])


class Alive(BaseModel):
    """The process answers."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "alive"}]})

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """The process serves; what is `degraded` is answered in a slower or poorer way."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ready", "degraded": ["redis"]}]})

    status: Literal["ready"] = "ready"
    degraded: list[str]


@router.get("/health/live", summary="Is the process alive?", description="Needs no key and no resource.")
async def read_live() -> Alive:
    """The process answers, so it lives."""
    return Alive()


@router.get(
    "/health/ready",
    summary="Can the process serve?",
    description="Pings every resource, each for 2 seconds at most. Only Postgres is essential: without one "
    "of the others the process is ready and `degraded`.",
    response_model=Ready,
    responses=problems(503),
)
async def read_ready(request: Request, services: ServicesOf) -> Ready | Response:
    """Ready, or a 503 that names the essential resource that does not answer."""
    down = await _ping_all(services)
    degraded = sorted({*services.degraded(), *down})
    missing = sorted(services.essential & down.keys())
    if missing:
        return answer_error(request.scope, down[missing[0]], degraded=degraded)
    return Ready(degraded=degraded)


@router.get(
    "/metrics",
    summary="The process's figures",
    description="In the text format of Prometheus. Needs a key with the scope `admin`.",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"example": 'http_requests_total{route="/v1/batches"} 3.0'}}},
        **problems(401, 403, 503),
    },
)
async def read_metrics(caller: Admin, services: ServicesOf) -> Response:
    """Everything in the process's registry."""
    services.metrics.streams.set(services.streams.count)
    return Response(generate_latest(services.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _ping_all(services: Services) -> dict[str, Unavailable]:
    seconds = services.limits.ping_seconds
    pings = [_ping(name, each, seconds) for name, each in services.pinged.items()]
    answers = zip(services.pinged, await asyncio.gather(*pings), strict=True)
    return {name: error for name, error in answers if error is not None}


async def _ping(name: str, resource: Pinged, seconds: float) -> Unavailable | None:
    try:
        async with asyncio.timeout(seconds):
            await resource.ping()
    except Unavailable as error:
        return error
    except TimeoutError:
        return Unavailable(f"{name} did not answer within {seconds:g} seconds.")
    except Exception as error:
        # readiness is asked by machines: a broken ping is an absent resource, and the log knows more
        log.exception("ping_failed", resource=name, error=type(error).__name__)
        return Unavailable(f"{name} cannot be asked.")
    return None
