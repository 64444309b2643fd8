"""A scripted upstream on the real wire: OpenAI's and Anthropic's protocols on loopback, replies to order."""

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

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


@dataclass
class ScriptedUpstream:
    """What it will answer, and what it was asked."""

    url: str = ""
    answers: deque[Answer] = field(default_factory=deque)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    #: of every request, also of those that nobody foresaw
    paths: list[str] = field(default_factory=list)

    def will(self, *answers: Answer) -> None:
        """Answer so, in this order, and well afterwards."""
        self.answers.extend(answers)

    async def next(self, request: Request) -> Answer:
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        answer = self.answers.popleft() if self.answers else Answer()
        await asyncio.sleep(answer.delay_seconds)
        return answer


def _app(upstream: ScriptedUpstream) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def openai(request: Request) -> Response:
        answer = await upstream.next(request)
        if answer.status != 200:
            return JSONResponse({"error": answer.error}, answer.status, headers=answer.headers)
        message = {"role": "assistant", "content": answer.text or None, "refusal": answer.refusal}
        usage = {
            "prompt_tokens": 700,
            "completion_tokens": 90,
            "total_tokens": 790,
            "prompt_tokens_details": {"cached_tokens": 512},
        }
        choice = {"index": 0, "message": message, "finish_reason": answer.finish or "stop"}
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
        return JSONResponse(
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": upstream.bodies[-1]["model"],
                "content": [{"type": "text", "text": answer.text}] if answer.text else [],
                "stop_reason": answer.finish or "end_turn",
                "stop_sequence": None,
                "usage": {
                    "input_tokens": 188,
                    "output_tokens": 90,
                    "cache_read_input_tokens": 512,
                    "cache_creation_input_tokens": 0,
                },
            }
        )

    @app.middleware("http")
    async def note(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        upstream.paths.append(request.url.path)
        return await call_next(request)

    return app


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
