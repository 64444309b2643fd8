"""Chat completions in OpenAI's protocol: its official client works unchanged (O10)."""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import Annotated, Any

import orjson
import structlog
from fastapi import APIRouter, Path, Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from api.bodies import read_body
from api.chat_examples import (
    COMPLETION_EXAMPLE,
    MODEL_EXAMPLE,
    MODELS_EXAMPLE,
    REQUEST_BODY,
    STREAM_EXAMPLE,
    refusals,
)
from api.chat_replies import (
    Chunks,
    Heading,
    completion,
    defect_document,
    error_document,
    error_event,
    error_headers,
    limit_headers,
    model_document,
    status_of,
)
from api.chat_requests import ChatRequest, profile_of, read_chat
from api.dependencies import Services, authenticate, services_of
from api.errors import CLIENT_CLOSED_REQUEST
from api.exchange import Exchange, Relay, cancelled
from api.idempotency import check_key
from api.trace import trace_id_of
from domain.completion import PROVIDER_SEPARATOR, CompletionReply, CompletionRequest, OnChunk, Payer
from domain.errors import AssayError, InvalidInput, NotFound, RateLimited, UnknownModel
from domain.gateway import Caller, LimitState
from domain.identity import ClientStep
from domain.keys import unknown_profile
from domain.ledger import CallKey

log = structlog.get_logger(__name__)

_JSON = {"content-type": "application/json"}
_EVENTS = {
    "content-type": "text/event-stream; charset=utf-8",
    # proxies must neither keep nor collect the events
    "cache-control": "no-store",
    "x-accel-buffering": "no",
}


# the key is read by hand, so that its refusal has OpenAI's form
_KEYED: dict[str, Any] = {"security": [{"bearer": []}, {"api_key": []}]}

ModelName = Annotated[str, Path(description="The model's name.", examples=["openai:gpt-5-mini"])]


class OpenAIRoute(APIRoute):
    """A route whose errors have OpenAI's form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler, which answers conditions itself."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except AssayError as error:
                return _refusal(request.scope, error)

        return answer


router = APIRouter(prefix="/v1", tags=["gateway"], route_class=OpenAIRoute)


@router.post(
    "/chat/completions",
    summary="Complete a chat",
    description="OpenAI's protocol, plain or streamed (`stream`). Paid once under an `Idempotency-Key`, and "
    "once for a retry that OpenAI's own client makes by itself. Beside OpenAI's parameters: `session`, "
    "`session_when_busy`, `profile`, `wait_on_rate_limit`, `max_wait_timeout_s`, `retry_budget_s`.",
    response_class=Response,
    responses={
        200: {
            "description": "The completion; with `stream` its chunks, and `data: [DONE]` at the end.",
            "content": {
                "application/json": {"example": COMPLETION_EXAMPLE},
                "text/event-stream": {"example": STREAM_EXAMPLE},
            },
        },
        **refusals(400, 401, 402, 403, 404, 409, 413, 422, 429, 503),
    },
    openapi_extra={**_KEYED, "requestBody": REQUEST_BODY},
)
async def complete_chat(request: Request) -> Response:
    """The completion, plain or as a stream."""
    services = await services_of(request)
    caller = await authenticate(services, _secret(request.headers), "model")
    body = await read_body(request, services.limits.max_chat_bytes, "max_chat_bytes")
    call = await _identified(services, caller, read_chat(body), request)
    return ChatAnswer(services, call)


@router.options("/chat/completions", include_in_schema=False)
async def say_how_to_complete() -> Response:
    """What can be asked of the address."""
    return Response(status_code=204, headers={"Allow": "POST, OPTIONS"})


class StraightToChat:
    """Takes chats to be completed past the framework, whose way to a route costs a twentieth of a call.

    The route stays for the OpenAPI document, and for addresses that end elsewhere.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._route = next(each for each in router.routes if getattr(each, "endpoint", None) is complete_chat)
        self._path = getattr(self._route, "path", "")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == self._path and scope["method"] == "POST":
            scope["route"] = self._route
            answer = await _completed(Request(scope, receive))
            await answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)


async def _completed(request: Request) -> Response:
    try:
        return await complete_chat(request)
    except AssayError as error:
        return _refusal(request.scope, error)
    except ClientDisconnect:
        log.info("client_left", path=request.url.path)
        return Response(status_code=CLIENT_CLOSED_REQUEST)


# --- who calls, and which call it is ------------------------------------------------------------------


@dataclass(frozen=True)
class ClientCall:
    """A call of an outside caller; its repetitions have its id."""

    caller: Caller
    request: CompletionRequest
    stream: bool
    include_usage: bool
    #: found again by its request alone: to be marked when it was delivered
    unnamed: bool
    #: none before it was this one
    new: bool

    @property
    def id(self) -> str:
        """What its client's repetitions find it by."""
        assert isinstance(self.request.step, ClientStep)
        return self.request.step.call_id

    @property
    def ledger_id(self) -> str:
        """What the ledger calls it, in statements and events."""
        return str(CallKey.of(self.request).id)


def _secret(headers: Headers) -> str | None:
    kind, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() if kind.lower() == "bearer" else headers.get("x-api-key")


async def _identified(services: Services, caller: Caller, asked: ChatRequest, request: Request) -> ClientCall:
    services.models.check(asked.model)
    caller = await _paying(services, caller, asked.profile)
    name, again, lost = _idempotency_key(request.headers), _is_retry(request.headers), None
    if name is not None:
        call_id = named_call_id(caller.key_id, name)
    else:
        lost = await _lost_call_id(services, caller, asked) if again else None
        call_id = lost or await services.client_calls.new()
    named = name is not None
    # a client that comes again by itself has lost the first answer, and waits for it
    call = _asked_for(
        caller,
        asked,
        ClientStep(call_id),
        trace_id=trace_id_of(request.scope),
        refuse_other=named,
        refuse_underway=named and not again,
    )
    return ClientCall(
        caller, call, asked.stream, asked.include_usage, unnamed=not named, new=not named and lost is None
    )


async def _paying(services: Services, caller: Caller, profile: str) -> Caller:
    """The caller with the profile that pays; asked of Postgres each time: a typo must find no budget."""
    paying = profile_of(caller, profile)
    if paying == caller.profile:
        return caller
    try:
        await services.tenants.profile(caller.tenant_id, paying)
    except NotFound as error:
        raise unknown_profile(paying) from error
    return replace(caller, profile=paying)


def _idempotency_key(headers: Headers) -> str | None:
    names = headers.getlist("idempotency-key")
    if len(set(names)) > 1:
        raise InvalidInput("Idempotency-Key: more than one was sent; send one.", field="Idempotency-Key")
    return check_key(names[0]) if names else None


def _asked_for(caller: Caller, asked: ChatRequest, step: ClientStep, **more: Any) -> CompletionRequest:
    return CompletionRequest(
        step=step,
        call_number=1,
        model=asked.model,
        max_tokens=asked.max_tokens or caller.default_max_tokens,
        payer=Payer(caller.tenant_id, api_key_id=caller.key_id, profile=caller.profile),
        chat=asked.chat,
        patience=asked.patience,
        **more,
    )


async def _lost_call_id(services: Services, caller: Caller, asked: ChatRequest) -> str | None:
    """The id of the call that was lost, and that its client comes for again by itself."""
    wanted = _asked_for(caller, asked, ClientStep(""))
    return await services.client_calls.retried(caller.key_id, wanted.request_hash())


def named_call_id(key_id: str, idempotency_key: str) -> str:
    """The id of the call that a key's client named; no other key's client can name it."""
    return "named-" + hashlib.sha256(f"{key_id}\0{idempotency_key}".encode()).hexdigest()[:40]


def _is_retry(headers: Headers) -> bool:
    """Whether OpenAI's client makes the request by itself, because an earlier one failed."""
    count = headers.get("x-stainless-retry-count", "")
    return count.isascii() and count.isdecimal() and count.strip("0") != ""


# --- answering ----------------------------------------------------------------------------------------


class ChatAnswer(Response):
    """Makes the call and answers it; a client that goes only stops listening, the call goes on to its end."""

    def __init__(self, services: Services, call: ClientCall) -> None:
        super().__init__()
        self._services = services
        self._call = call
        self._heading = Heading(call.ledger_id, int(services.clock.now().timestamp()))
        self._states: Sequence[LimitState] = ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        exchange = Exchange(receive, send, stall_seconds=self._services.limits.stall_seconds)
        try:
            await (self._stream(exchange) if self._call.stream else self._plain(exchange))
            if self._call.unnamed:
                await self._services.client_calls.delivered(self._call.id)
        except ClientDisconnect:
            log.info("client_left", call_id=self._call.ledger_id)
            if not exchange.begun:
                await exchange.begin(CLIENT_CLOSED_REQUEST, {})
        except Exception as error:  # noqa: BLE001  # said in OpenAI's form, and logged
            with suppress(ClientDisconnect):
                await self._refuse(exchange, error)
        finally:
            exchange.close()

    async def _plain(self, exchange: Exchange) -> None:
        reply = await exchange.while_there(self._complete())
        await exchange.answer(200, self._with_limits(_JSON), completion(self._heading, reply))

    async def _stream(self, exchange: Exchange) -> None:
        relay = Relay()
        exchange.on_leave(relay.end)
        completing = asyncio.ensure_future(self._complete(relay.put))
        completing.add_done_callback(lambda _: relay.end())
        try:
            await self._tell(exchange, relay, completing)
        finally:
            # whatever ended it: the model must not wait for room that nobody makes any more
            relay.end()
            await cancelled(completing)

    async def _tell(
        self, exchange: Exchange, relay: Relay, completing: "asyncio.Future[CompletionReply]"
    ) -> None:
        chunks = Chunks(self._heading, self._call.request, include_usage=self._call.include_usage)
        while batch := await relay.take():
            await self._begin(exchange)
            await exchange.write(b"".join(map(chunks.event, batch)))
        exchange.check()
        reply = completing.result()
        untold = b"" if exchange.begun else chunks.whole(reply)
        await self._begin(exchange)
        await exchange.write(untold + chunks.last(reply))
        await exchange.end()

    async def _begin(self, exchange: Exchange) -> None:
        # with the first chunk and not before: until then a failure still has a status
        if not exchange.begun:
            await exchange.begin(200, self._with_limits(_EVENTS))

    async def _refuse(self, exchange: Exchange, error: Exception) -> None:
        status, headers, document = _said(error)
        if exchange.begun:
            await exchange.write(error_event(document))
            await exchange.end()
        else:
            await exchange.answer(status, self._with_limits(headers), document)

    def _with_limits(self, headers: Mapping[str, str]) -> dict[str, str]:
        return {**headers, "x-request-id": self._call.request.trace_id, **limit_headers(self._states)}

    async def _complete(self, on_chunk: OnChunk | None = None) -> CompletionReply:
        request = self._call.request
        try:
            return await self._services.completions.complete(
                request, caller=self._call.caller, on_chunk=on_chunk, on_limits=self._hear_limits
            )
        except RateLimited:
            # before it is answered: its retry may be quick, and must not take an equal call's reply
            if self._call.new:
                calls = self._services.client_calls
                await calls.refused(request.payer.api_key_id, request.request_hash())
            raise

    def _hear_limits(self, states: Sequence[LimitState]) -> None:
        self._states = states


def _refusal(scope: Scope, error: AssayError) -> Response:
    status, headers, document = _said(error)
    return Response(document, status, headers | {"x-request-id": trace_id_of(scope)})


def _said(error: Exception) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and document of a failure, which is logged where it is ours."""
    if not isinstance(error, AssayError):
        log.error("request_crashed", exc_info=error)
        return HTTPStatus.INTERNAL_SERVER_ERROR, _JSON, defect_document()
    status = status_of(type(error))
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("request_failed", code=error.code, message=error.message, exc_info=not error.expected)
    return status, {**_JSON, **error_headers(error)}, error_document(error)


# --- models -------------------------------------------------------------------------------------------


@router.head("/models", include_in_schema=False)
@router.get(
    "/models",
    summary="List the models",
    description="The models with a name of their own, and those of providers that the key names. Any other "
    "name of a provider can be asked for too.",
    response_class=Response,
    responses={
        200: {"description": "The models.", "content": {"application/json": {"example": MODELS_EXAMPLE}}},
        **refusals(401, 403, 503),
    },
    openapi_extra=_KEYED,
)
async def list_models(request: Request) -> Response:
    """The models by name."""
    services = await services_of(request)
    caller = await authenticate(services, _secret(request.headers), "model")
    listed = [model_document(name, _owner(name)) for name in _names(services, caller)]
    return _json(request, {"object": "list", "data": listed})


@router.head("/models/{name:path}", include_in_schema=False)
@router.get(
    "/models/{name:path}",
    summary="Read a model",
    description="Whether the key may ask for a model of that name.",
    response_class=Response,
    responses={
        200: {"description": "The model.", "content": {"application/json": {"example": MODEL_EXAMPLE}}},
        **refusals(401, 403, 404, 422, 503),
    },
    openapi_extra=_KEYED,
)
async def read_model(name: ModelName, request: Request) -> Response:
    """The model, if the key may ask for it."""
    services = await services_of(request)
    caller = await authenticate(services, _secret(request.headers), "model")
    services.models.check(name)
    if name in services.models.graders or not _may_use(caller, name):
        raise UnknownModel(f"The model {name!r} is not there for this key.", field="model")
    return _json(request, model_document(name, _owner(name)))


def _names(services: Services, caller: Caller) -> list[str]:
    """Those with a name of their own, and those of a provider that the key names without a pattern."""
    own = [name for name in services.models.chatting if _may_use(caller, name)]
    named = [name for name in caller.models if PROVIDER_SEPARATOR in name and "*" not in name]
    return sorted({*own, *named})


def _may_use(caller: Caller, name: str) -> bool:
    return not caller.models or any(fnmatchcase(name, pattern) for pattern in caller.models)


def _owner(name: str) -> str:
    provider, separator, _ = name.partition(PROVIDER_SEPARATOR)
    return provider if separator else "assay"


def _json(request: Request, document: Mapping[str, Any]) -> Response:
    headers = {"x-request-id": trace_id_of(request.scope)}
    return Response(orjson.dumps(document), media_type="application/json", headers=headers)
