"""The application: routers, error handlers and the middleware of traces, nothing else."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.types import Scope

from api import (
    baselines,
    batches,
    census,
    completions,
    conversations,
    costs,
    estimates,
    exams,
    files,
    health,
    keys,
    overrides,
    pauses,
    progress,
    reports,
    reruns,
    resumable,
    submissions,
    tables,
    tenants,
    threads,
    uploads,
    workflow_events,
)
from api.errors import Problem, answer_defect, install_error_handlers
from api.estimates import EstimateRequest
from api.trace import TraceMiddleware

VERSION = "0.1.0"

DESCRIPTION = """
Durable AI assessment of batches of files.

Open a batch, upload its files, complete it, follow its events, read its report. Every error is a problem
document (RFC 9457) with a stable `code`. Money is a decimal string of dollars,
a time RFC 3339 with offset.
"""

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Mapping[str, Any]]]


def create_app(lifespan: Lifespan) -> FastAPI:
    """The application over the services that the lifespan yields."""
    app = FastAPI(
        title="Assay",
        version=VERSION,
        description=DESCRIPTION,
        lifespan=lifespan,
        # a redirect would turn a file's name that ends in a slash into another name
        redirect_slashes=False,
    )
    routers = (
        # the first that matches is taken: here every microsecond is added to a model's
        completions,
        exams,
        batches,
        baselines,
        estimates,
        pauses,
        reruns,
        uploads,
        resumable,
        tables,
        files,
        reports,
        progress,
        submissions,
        overrides,
        workflow_events,
        threads,
        census,
        conversations,
        keys,
        tenants,
        costs,
    )
    for each in routers:
        app.include_router(each.router)
    # the paths of the sources answer too (B1.1)
    for each in (batches, pauses, uploads, files, reports, progress):
        app.include_router(each.router, prefix="/api", include_in_schema=False)
    app.include_router(health.router)
    install_error_handlers(app)
    app.add_middleware(reports.StraightToReports)
    app.add_middleware(completions.StraightToChat)
    app.add_middleware(TraceMiddleware, measure=_measure, crashed=answer_defect)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


def _measure(scope: Scope, route: str, method: str, status: int, seconds: float) -> None:
    scope["state"]["services"].metrics.count(route, method, status, seconds)


def _document(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        schemas = document["components"]["schemas"]
        # what FastAPI does not see: the problem of every error, and a body that a route reads by hand
        for model in (Problem, EstimateRequest):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= {**schema.pop("$defs", {}), model.__name__: schema}
        app.openapi_schema = document
    return app.openapi_schema
