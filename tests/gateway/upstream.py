"""A scripted upstream on the real wire: OpenAI's and Anthropic's protocols on loopback, replies to order."""

import asyncio
import json
import re
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

GOOD: dict[str, Any] = {
    "instruction_in_answer": False,
    "criteria": [
        {
            "criterion_id": each,
            "quote": "Because it rains.",
            "reason": "You named it.",
            "cannot_assess": False,
            "points": points,
            "confidence": 0.9,
        }
        for each, points in (("c1", 2), ("c2", 1))
    ],
}


@dataclass(frozen=True)
class Answer:
    """One answer of the upstream; `finish` is the protocol's own word, `delay_seconds` come before it."""

    text: str = json.dumps(GOOD)
    finish: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=dict)
    refusal: str | None = None
    delay_seconds: float = 0.0
    usage: bool = True
    #: arguments of a call of the tool `weather`, in place of the text
    tool: str = ""
    #: a streamed reply ends in the middle: with the connection, as if it were whole, or with an `error`
    cut: Literal["", "connection", "end", "error"] = ""


@dataclass
class ScriptedUpstream:
    """What it will answer, and what it was asked."""

    url: str = ""
    answers: deque[Answer] = field(default_factory=deque)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    #: of every request, also of those that nobody foresaw
    paths: list[str] = field(default_factory=list)
    #: requests whose client did not wait for the answer
    hung_up: int = 0

    def will(self, *answers: Answer) -> None:
        """Answer so, in this order, and well afterwards."""
        self.answers.extend(answers)

    async def next(self, request: Request) -> Answer:
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        answer = self.answers.popleft() if self.answers else Answer()
        until = time.monotonic() + answer.delay_seconds
        while time.monotonic() < until:
            if await request.is_disconnected():
                self.hung_up += 1
                break
            await asyncio.sleep(0.01)
        return answer


OPENAI_USAGE: dict[str, Any] = {
    "prompt_tokens": 700,
    "completion_tokens": 90,
    "total_tokens": 790,
    "prompt_tokens_details": {"cached_tokens": 512},
}
ANTHROPIC_USAGE = {
    "input_tokens": 188,
    "output_tokens": 90,
    "cache_read_input_tokens": 512,
    "cache_creation_input_tokens": 0,
}


def _openai_finish(answer: Answer) -> str:
    return answer.finish or ("tool_calls" if answer.tool else "stop")


def _tool_call(arguments: str) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}


def _openai_events(answer: Answer) -> Iterator[str]:
    deltas: list[dict[str, Any]] = [{"content": each} for each in _words(answer.text)]
    if answer.tool:
        half = len(answer.tool) // 2
        rest = {"index": 0, "function": {"arguments": answer.tool[half:]}}
        deltas = [
            {"content": None, "tool_calls": [{"index": 0, **_tool_call(answer.tool[:half])}]},
            {"tool_calls": [rest]},
        ]
    first = {"role": "assistant", "content": None if answer.tool else ""}
    for delta in (first, *deltas):
        yield _openai_event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    yield _openai_event({"choices": [{"index": 0, "delta": {}, "finish_reason": _openai_finish(answer)}]})
    if answer.usage:
        yield _openai_event({"choices": [], "usage": OPENAI_USAGE})
    yield "data: [DONE]\n\n"


def _openai_event(document: dict[str, Any]) -> str:
    heading = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return f"data: {json.dumps(heading | document)}\n\n"


def _anthropic_finish(answer: Answer) -> str:
    return answer.finish or ("tool_use" if answer.tool else "end_turn")


def _tool_use(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": arguments}


def _anthropic_message(content: list[dict[str, Any]], stop_reason: str | None) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": ANTHROPIC_USAGE,
    }


def _anthropic_events(answer: Answer) -> Iterator[str]:
    yield _anthropic_event({"type": "message_start", "message": _anthropic_message([], None)})
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if answer.text:
        deltas = [{"type": "text_delta", "text": each} for each in _words(answer.text)]
        blocks.append(({"type": "text", "text": ""}, deltas))
    if answer.tool:
        half = len(answer.tool) // 2
        pieces = (answer.tool[:half], answer.tool[half:])
        blocks.append(
            (_tool_use({}), [{"type": "input_json_delta", "partial_json": each} for each in pieces])
        )
    for index, (block, deltas) in enumerate(blocks):
        yield _anthropic_event({"type": "content_block_start", "index": index, "content_block": block})
        for delta in deltas:
            yield _anthropic_event({"type": "content_block_delta", "index": index, "delta": delta})
        yield _anthropic_event({"type": "content_block_stop", "index": index})
    end = {"stop_reason": _anthropic_finish(answer), "stop_sequence": None}
    # all that the call used, as its client relies on
    yield _anthropic_event({"type": "message_delta", "delta": end, "usage": ANTHROPIC_USAGE})
    yield _anthropic_event({"type": "message_stop"})


def _anthropic_event(document: dict[str, Any]) -> str:
    return f"event: {document['type']}\ndata: {json.dumps(document)}\n\n"


def _words(text: str) -> list[str]:
    return re.findall(r"\S+\s*", text)


def _events(events: Iterable[str], answer: Answer) -> Response:
    """The events, each in a piece of its own; a cut reply ends after three of them."""

    async def pieces() -> AsyncIterator[str]:
        for number, event in enumerate(events):
            if answer.cut and number == 3:
                if answer.cut == "error":
                    yield _anthropic_event({"type": "error", "error": answer.error})
                if answer.cut != "connection":
                    return
                raise ConnectionAbortedError("the script breaks off here")
            yield event
            await asyncio.sleep(0)

    return StreamingResponse(pieces(), media_type="text/event-stream", headers=answer.headers)


def _app(upstream: ScriptedUpstream) -> Callable[[Any, Any, Any], Awaitable[None]]:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def openai(request: Request) -> Response:
        answer = await upstream.next(request)
        if answer.status != 200:
            return JSONResponse({"error": answer.error}, answer.status, headers=answer.headers)
        if upstream.bodies[-1].get("stream"):
            return _events(_openai_events(answer), answer)
        message = {"role": "assistant", "content": answer.text or None, "refusal": answer.refusal}
        if answer.tool:
            message |= {"content": None, "tool_calls": [_tool_call(answer.tool)]}
        usage = OPENAI_USAGE
        choice = {"index": 0, "message": message, "finish_reason": _openai_finish(answer)}
        return JSONResponse(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": upstream.bodies[-1]["model"],
                "choices": [choice],
                **({"usage": usage} if answer.usage else {}),
            }
        )

    @app.post("/v1/messages")
    async def anthropic(request: Request) -> Response:
        answer = await upstream.next(request)
        if answer.status != 200:
            body = {"type": "error", "error": answer.error}
            return JSONResponse(body, answer.status, headers=answer.headers)
        if upstream.bodies[-1].get("stream"):
            return _events(_anthropic_events(answer), answer)
        content: list[dict[str, Any]] = [{"type": "text", "text": answer.text}] if answer.text else []
        if answer.tool:
            content.append(_tool_use(json.loads(answer.tool)))
        message = _anthropic_message(content, _anthropic_finish(answer))
        return JSONResponse(message | {"model": upstream.bodies[-1]["model"]})

    async def noted(scope: Any, receive: Any, send: Any) -> None:
        # no middleware of Starlette's: behind one, a request does not hear that its client has gone
        if scope["type"] == "http":
            upstream.paths.append(scope["path"])
        await app(scope, receive, send)

    return noted


@contextmanager
def running_upstream() -> Iterator[ScriptedUpstream]:
    """The upstream, serving on a free loopback port for as long as the block."""
    upstream = ScriptedUpstream()
    server = uvicorn.Server(
        uvicorn.Config(_app(upstream), host="127.0.0.1", port=0, log_config=None, timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    upstream.url = f"http://127.0.0.1:{port}"
    try:
        yield upstream
    finally:
        server.should_exit = True
        thread.join(10)
