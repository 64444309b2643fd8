"""One trace id through every request (G5.1), and the figures by route."""

import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SCOPE_KEY = "assay.trace"

#: 'n' bytes of randomness in hex
RandomHex = Callable[[int], str]
#: route template, method, status, seconds until the response began
Measure = Callable[[Scope, str, str, int, float], None]
Crashed = Callable[[Scope, Exception], ASGIApp]


@dataclass(frozen=True)
class Traceparent:
    """A position in a trace, as W3C Trace Context writes it."""

    trace_id: str
    span_id: str
    flags: str = "01"

    @classmethod
    def parse(cls, header: str | None) -> Self | None:
        """What a valid header says; `None` for none and for an invalid one."""
        match = _TRACEPARENT.fullmatch(header.strip()) if header else None
        if match is None:
            return None
        version, trace_id, span_id, flags, rest = match.groups()
        # version ff is forbidden, and only later versions may say more than version 00
        if version == "ff" or (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
            return None
        return cls(trace_id, span_id, flags)

    @classmethod
    def start(cls, random_hex: RandomHex) -> Self:
        """A new trace."""
        return cls(random_hex(16), random_hex(8))

    def child(self, random_hex: RandomHex) -> "Traceparent":
        """A new span in the same trace."""
        return Traceparent(self.trace_id, random_hex(8), self.flags)

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


def trace_id_of(scope: Scope) -> str:
    """The trace id of the request; empty outside one."""
    trace = scope.get(_SCOPE_KEY)
    return trace.trace_id if isinstance(trace, Traceparent) else ""


class TraceMiddleware:
    """Gives each request its trace, its measure, and an answer when it crashes.

    A crash is answered here, inside the trace, and not by Starlette's outermost layer, so that the
    problem document, the log line and the response's header carry the same id.
    """

    def __init__(
        self, app: ASGIApp, *, measure: Measure, crashed: Crashed, random_hex: RandomHex = secrets.token_hex
    ) -> None:
        self._app = app
        self._measure = measure
        self._crashed = crashed
        self._random_hex = random_hex

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        trace = self._trace(Headers(scope=scope).get("traceparent"))
        scope[_SCOPE_KEY] = trace
        with structlog.contextvars.bound_contextvars(trace_id=trace.trace_id):
            if scope["type"] == "http":
                await self._answer(scope, receive, send, trace)
            else:
                await self._app(scope, receive, send)

    def _trace(self, header: str | None) -> Traceparent:
        given = Traceparent.parse(header)
        return given.child(self._random_hex) if given else Traceparent.start(self._random_hex)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, trace: Traceparent) -> None:
        began = time.perf_counter()
        started = False

        async def traced_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["traceparent"] = str(trace)
                seconds = time.perf_counter() - began
                self._measure(scope, _route(scope), scope["method"], message["status"], seconds)
            await send(message)

        try:
            await self._app(scope, receive, traced_send)
        except Exception as error:
            # half an answer cannot be taken back: the server must cut the connection
            if started:
                raise
            await self._crashed(scope, error)(scope, receive, traced_send)


def _route(scope: Scope) -> str:
    """The route's template: a label of few values, where the path has any number."""
    return getattr(scope.get("route"), "path", "unmatched")
