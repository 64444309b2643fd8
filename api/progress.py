"""Progress as Server-Sent Events and over WebSocket."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, Header, Query, Response, WebSocket
from fastapi.responses import StreamingResponse
from starlette.types import Send
from starlette.websockets import WebSocketDisconnect

from api.dependencies import Reader, Services, ServicesOf, authenticate, check_id, services_of
from api.errors import problem_of, problems
from api.trace import trace_id_of
from api.watching import (
    End,
    KeepAlive,
    Message,
    Snapshot,
    Watch,
    check_position,
    follow,
    is_over,
    watch_batch,
    watch_submission,
)
from api.wire import BatchId
from domain.diagnosis import DiagnosisDelta
from domain.errors import (
    AssayError,
    Forbidden,
    InvalidInput,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from domain.gateway import Caller

log = structlog.get_logger(__name__)

router = APIRouter(tags=["progress"])

#: bigint's end: no event has a higher number
MAX_NUMBER = 2**63 - 1

#: what a piece of a diagnosis is called while it is written
DELTA = "diagnosis.delta"

CLOSED_NORMALLY = 1000
CLOSED_FOR_RESTART = 1012
CLOSED_FOR_NOW = 1013
CLOSED_DEFECT = 1011
_CLOSINGS: dict[type[AssayError], int] = {
    Unauthenticated: 4401,
    Forbidden: 4403,
    NotFound: 4404,
    InvalidInput: 4422,
    Unavailable: CLOSED_FOR_NOW,
}

_EXAMPLE = (
    "id: 7\n"
    "event: snapshot\n"
    'data: {"batch_id": "0197c1de-1111-7000-8000-000000000000", "state": "scattering", "last_number": 7}\n\n'
    "id: 8\n"
    "event: FileAssessed\n"
    'data: {"event_type": "FileAssessed", "number": 8}\n\n'
)

Number = Annotated[
    int | None, Query(ge=0, le=MAX_NUMBER, description="The number of the last event received.", examples=[7])
]


class EventStream(StreamingResponse):
    """Server-Sent Events that give up on a client who takes nothing for a while."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[str, None], stall_seconds: float) -> None:
        # proxies must neither keep nor collect the frames
        super().__init__(frames, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._frames = frames
        self._stall_seconds = stall_seconds

    async def stream_response(self, send: Send) -> None:
        """Send frame by frame; the generator is closed however the stream ends."""
        async with aclosing(self._frames) as frames:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for frame in frames:
                try:
                    async with asyncio.timeout(self._stall_seconds):
                        await send({"type": "http.response.body", "body": frame.encode(), "more_body": True})
                except TimeoutError:
                    # no last part: the server cuts the connection, and the client comes back
                    log.info("slow_client_cut", seconds=self._stall_seconds)
                    return
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _position(
    after: Number = None,
    last_event_id: Annotated[
        str | None, Header(description="As `after`; a browser's EventSource sends it by itself.")
    ] = None,
) -> int | None:
    if last_event_id is None or last_event_id == "":
        return after
    # isdecimal alone would take the digits of other scripts too
    if not (last_event_id.isascii() and last_event_id.isdecimal()) or int(last_event_id) > MAX_NUMBER:
        raise InvalidInput(
            f"Last-Event-ID: {last_event_id[:30]!r} is no event's number.", field="Last-Event-ID"
        )
    return int(last_event_id)


@router.get(
    "/v1/batches/{batch_id}/events",
    summary="Follow a batch",
    description="Server-Sent Events: a `snapshot`, then the batch's events by type, each with its number as "
    "`id`, without gaps; after the final state an `end`. A reconnect with `Last-Event-ID` (or `after`) gets "
    "exactly what it has not had, and a 204 if there is nothing more to come. While a batch is diagnosed, "
    "`diagnosis.delta` has pieces of the text as it is written, without `id`: they are neither numbered nor "
    "stored, and the checked result is in the report.",
    response_class=Response,
    responses={
        200: {"description": "The events.", "content": {"text/event-stream": {"example": _EXAMPLE}}},
        204: {"description": "Everything has been received and the batch has ended."},
        **problems(401, 403, 404, 422, 503),
    },
)
async def follow_batch(
    batch_id: BatchId,
    caller: Reader,
    services: ServicesOf,
    after: Annotated[int | None, Depends(_position)],
) -> Response:
    """The stream of the batch's events."""
    services.streams.check(services.limits.max_streams)
    watch = await watch_batch(services, caller.tenant_id, check_id("batch", batch_id))
    await check_position(services, watch, after)
    if after is not None and await is_over(services, watch, after):
        return Response(status_code=204)
    return EventStream(_frames(follow(services, watch, after)), services.limits.stall_seconds)


async def _frames(messages: AsyncGenerator[Message, None]) -> AsyncGenerator[str, None]:
    async with aclosing(messages) as each_message:
        try:
            async for message in each_message:
                yield sse_frame(message)
        except Unavailable as error:
            # without an `end` the client comes back by itself, with its last number
            log.warning("event_stream_broken", code=error.code)


def sse_frame(message: Message) -> str:
    """The message in the format of Server-Sent Events."""
    if isinstance(message, KeepAlive):
        return ": keep-alive\n\n"
    if isinstance(message, Snapshot):
        document = {**message.document, "last_number": message.last_number}
        # the snapshot has an id: a client that loses its connection before the first event loses nothing
        return f"id: {message.last_number}\nevent: snapshot\ndata: {_json(document)}\n\n"
    if isinstance(message, End):
        return f"event: end\ndata: {_json(message.document)}\n\n"
    if isinstance(message, DiagnosisDelta):
        # without an id: it is no event with a number, and a reconnect does not ask for it
        return f"event: {DELTA}\ndata: {_json(vars(message))}\n\n"
    return f"id: {message.number}\nevent: {message.event_type}\ndata: {_json(message.document())}\n\n"


# --- WebSocket -----------------------------------------------------------------------------------

Open = Callable[[Services, Caller], Awaitable[Watch]]


@router.websocket("/ws/batches/{batch_id}")
async def follow_batch_by_socket(socket: WebSocket, batch_id: str) -> None:
    """The batch's snapshot and events as JSON messages."""
    await _serve(
        socket,
        lambda services, caller: watch_batch(services, caller.tenant_id, check_id("batch", batch_id)),
    )


@router.websocket("/ws/submissions/{submission_id}")
async def follow_submission_by_socket(socket: WebSocket, submission_id: str) -> None:
    """The submission's snapshot and events as JSON messages; the numbers are its batch's."""
    await _serve(
        socket,
        lambda services, caller: watch_submission(
            services, caller.tenant_id, check_id("submission", submission_id)
        ),
    )


async def _serve(socket: WebSocket, open_watch: Open) -> None:
    """Accept first, so that a refusal reaches the client as a message and not as a bare 403."""
    await socket.accept()
    try:
        await _tell(socket, await services_of(socket), open_watch)
    except WebSocketDisconnect:
        return
    except TimeoutError:
        await socket.close(CLOSED_FOR_NOW, "You take nothing; reconnect with ?after=<last number>.")
    except AssayError as error:
        await _refuse(socket, error)


async def _tell(socket: WebSocket, services: Services, open_watch: Open) -> None:
    services.streams.check(services.limits.max_streams)
    after = _after(socket)
    caller = await _caller(socket, services)
    watch = await open_watch(services, caller)
    await check_position(services, watch, after)
    leaving = asyncio.create_task(_wait_for_leave(socket))
    sending = asyncio.create_task(_send_all(socket, follow(services, watch, after), services))
    try:
        await asyncio.wait({leaving, sending}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        sending.cancel()
        await asyncio.gather(leaving, sending, return_exceptions=True)
    if not sending.cancelled():
        await socket.close(sending.result())


async def _send_all(socket: WebSocket, messages: AsyncGenerator[Message, None], services: Services) -> int:
    """Send all messages; answers the code to close with."""
    async with aclosing(messages) as each_message:
        async for message in each_message:
            document = socket_document(message)
            if document is not None:
                async with asyncio.timeout(services.limits.stall_seconds):
                    await socket.send_text(_json(document))
            if isinstance(message, End):
                return CLOSED_NORMALLY
    return CLOSED_FOR_RESTART


async def _wait_for_leave(socket: WebSocket) -> None:
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def _caller(socket: WebSocket, services: Services) -> Caller:
    """The caller of the key in a header, or in the first message as `{"key": …}`."""
    bearer = socket.headers.get("authorization", "")
    scheme, _, token = bearer.partition(" ")
    secret = token.strip() if scheme.lower() == "bearer" else socket.headers.get("x-api-key")
    return await authenticate(services, secret or await _sent_key(socket, services), "read")


async def _sent_key(socket: WebSocket, services: Services) -> str:
    try:
        async with asyncio.timeout(services.limits.key_seconds):
            message = json.loads(await socket.receive_text())
        key = message["key"]
    except (TimeoutError, ValueError, KeyError, TypeError) as error:
        raise Unauthenticated(
            'Send a key in a header, or {"key": "…"} as the first message.', field="key"
        ) from error
    return key if isinstance(key, str) else ""


def _after(socket: WebSocket) -> int | None:
    text = socket.query_params.get("after")
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()) or int(text) > MAX_NUMBER:
        raise InvalidInput(f"after: {text[:30]!r} is no event's number.", field="after")
    return int(text)


async def _refuse(socket: WebSocket, error: AssayError) -> None:
    if not error.expected:
        log.error("socket_failed", code=error.code, exc_info=error)
    closing = next((_CLOSINGS[each] for each in type(error).__mro__ if each in _CLOSINGS), CLOSED_DEFECT)
    problem = problem_of(error, trace_id_of(socket.scope))
    await socket.send_text(_json({"type": "error", "problem": problem}))
    await socket.close(closing, error.code)


def socket_document(message: Message) -> dict[str, Any] | None:
    """The message as JSON data with its `type`; `None` where WebSocket has its own means."""
    if isinstance(message, KeepAlive):
        return None
    if isinstance(message, Snapshot):
        return {"type": "snapshot", **message.document, "last_number": message.last_number}
    if isinstance(message, End):
        return {"type": "end", **message.document}
    if isinstance(message, DiagnosisDelta):
        return {"type": DELTA, **vars(message)}
    return {"type": "event", **message.document()}


def _json(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False)
