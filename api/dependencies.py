"""Typed access to the process's resources, and who may do what."""

import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Annotated, TypedDict

from fastapi import Depends, Request, Security
from fastapi.dependencies.models import Dependant
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from api.metrics import ApiMetrics
from api.report_reading import Report, WrittenReport, WrittenReports
from api.singleflight import SingleFlight
from domain.completion import ModelNames
from domain.diagnosis import Baselines, DiagnosisDeltas, DiagnosisReports
from domain.errors import Forbidden, InvalidInput, NotFound, Unauthenticated, Unavailable
from domain.external_events import EventChannel, ExternalEvents
from domain.gateway import Caller, ClientCalls, Completions, Conversations
from domain.identity import is_segment
from domain.keys import Costs, KeyRegister, KeyScope, Tenants
from domain.locks import Locks
from domain.overrides import Overrides
from domain.ports import (
    AgentStates,
    Batches,
    Clock,
    Exams,
    IdempotencyKeys,
    Objects,
    Orchestrator,
    Pinged,
    Prices,
    ProgressBell,
    ReportCache,
    Reruns,
    ResultCache,
    Results,
    Resumptions,
    ThreadHistory,
    TokenRatios,
)
from domain.uploads import ResumableUploads

MAX_ID_LENGTH = 100


@dataclass(frozen=True)
class Limits:
    """How much of everything one request or one process takes."""

    max_file_bytes: int = 1024**3
    #: parts of one multipart request, too
    max_files: int = 100_000
    #: the object store's part; the API itself passes on what the socket gives
    part_bytes: int = 5 * 1024**2
    max_exam_bytes: int = 5 * 1024**2
    max_body_bytes: int = 64 * 1024
    #: of one chat completion
    max_chat_bytes: int = 10 * 1024**2
    #: open event streams and WebSockets of this process
    max_streams: int = 1_000
    #: how long a client may take nothing before its stream is cut
    stall_seconds: float = 30.0
    bell_seconds: float = 1.0
    keep_alive_seconds: float = 15.0
    ping_seconds: float = 2.0
    #: how long a WebSocket may stay without a key
    key_seconds: float = 10.0


class OpenStreams:
    """Counts the event streams of this process."""

    def __init__(self) -> None:
        self.count = 0

    def check(self, at_most: int) -> None:
        """Raise `Unavailable` when there are as many as may be."""
        if self.count >= at_most:
            raise Unavailable(
                f"This process serves {at_most} event streams (max_streams) already; try again."
            )

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count one more for as long as it lasts."""
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1


def random_id() -> str:
    """A new id that no other process makes."""
    return str(uuid.uuid4())


def never() -> bool:
    """For what does not happen."""
    return False


@dataclass(frozen=True)
class Services:
    """Everything that the routes may use; opened and closed by the lifespan."""

    exams: Exams
    batches: Batches
    baselines: Baselines
    resumptions: Resumptions
    reruns: Reruns
    thread_history: ThreadHistory
    overrides: Overrides
    prices: Prices
    token_ratios: TokenRatios
    results: Results
    diagnosis_reports: DiagnosisReports
    diagnosis_deltas: DiagnosisDeltas
    result_cache: ResultCache
    report_cache: ReportCache
    keys: KeyRegister
    tenants: Tenants
    costs: Costs
    #: the tenant whose admin keys may make other tenants
    operator_tenant: str
    workflow_events: ExternalEvents
    event_channel: EventChannel
    locks: Locks
    idempotency_keys: IdempotencyKeys
    objects: Objects
    resumable_uploads: ResumableUploads
    bell: ProgressBell
    orchestrator: Orchestrator
    agent_states: AgentStates
    pinged: Mapping[str, Pinged]
    #: names of the parts that work without one of their resources right now
    degraded: Callable[[], list[str]]
    clock: Clock
    models: ModelNames
    metrics: ApiMetrics
    completions: Completions
    client_calls: ClientCalls
    conversations: Conversations
    limits: Limits = Limits()
    #: the resources without which the process cannot serve; absence of the others is degradation
    essential: frozenset[str] = frozenset({"postgres"})
    new_id: Callable[[], str] = random_id
    #: true once the server shuts down, so that event streams end and let it
    draining: Callable[[], bool] = never
    streams: OpenStreams = field(default_factory=OpenStreams)
    reports: SingleFlight[Report] = field(default_factory=SingleFlight)
    report_writings: SingleFlight[WrittenReport] = field(default_factory=SingleFlight)
    written_reports: WrittenReports = field(default_factory=lambda: WrittenReports(monotonic))


class LifespanState(TypedDict):
    """What the lifespan yields."""

    services: Services


async def services_of(connection: HTTPConnection) -> Services:
    """The process's services."""
    services = connection.state.services
    assert isinstance(services, Services)
    return services


ServicesOf = Annotated[Services, Depends(services_of)]

_bearer = HTTPBearer(auto_error=False, scheme_name="bearer", description="The key as a bearer token.")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="api_key", description="The key.")


def require(*scopes: KeyScope) -> Callable[..., Awaitable[Caller]]:
    """The dependency that answers the caller if its key has one of the scopes, and the query is declared."""

    async def caller(
        request: Request,
        services: ServicesOf,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
        header: Annotated[str | None, Security(_header)],
    ) -> Caller:
        caller = await authenticate(services, bearer.credentials if bearer else header, *scopes)
        _refuse_undeclared_query(request)
        return caller

    return caller


Reader = Annotated[Caller, Depends(require("read"))]
Submitter = Annotated[Caller, Depends(require("submit"))]
Admin = Annotated[Caller, Depends(require("admin"))]


def secret_of(headers: Headers) -> str | None:
    """The key that a request states, read by hand where no dependency does."""
    kind, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() if kind.lower() == "bearer" else headers.get("x-api-key")


async def authenticate(services: Services, secret: str | None, *scopes: KeyScope) -> Caller:
    """The caller of the key; raises `Unauthenticated` or `Forbidden`."""
    if not secret:
        raise Unauthenticated(
            "This request needs a key: send 'Authorization: Bearer <key>' or 'X-API-Key: <key>'."
        )
    caller = await services.keys.authenticate(secret)
    if not {*scopes, "admin"} & set(caller.scopes):
        raise Forbidden(f"This key lacks the scope {' or '.join(map(repr, scopes))}.")
    return caller


def check_id(kind: str, text: str) -> str:
    """The id, if it can be one of ours at all; raises `NotFound`, as for an id that is not there."""
    if len(text) > MAX_ID_LENGTH or not is_segment(text):
        raise NotFound(f"There is no {kind} of that id.", field=f"{kind}_id")
    return text


def _refuse_undeclared_query(request: Request) -> None:
    dependant = getattr(request.scope.get("route"), "dependant", None)
    if dependant is None:
        return
    declared = sorted(set(_query_names(dependant)))
    for name in request.query_params:
        if name not in declared:
            known = ", ".join(declared) or "none"
            raise InvalidInput(f"{name}: unknown query parameter; known here: {known}.", field=name)


def _query_names(dependant: Dependant) -> Iterator[str]:
    for parameter in dependant.query_params:
        yield parameter.alias
    for each in dependant.dependencies:
        yield from _query_names(each)
