"""Callers over HTTP that cost next to nothing themselves: each asks again as soon as it was answered."""

import asyncio
import json
import statistics
import time
from dataclasses import dataclass, field
from typing import Any, Self, cast
from urllib.parse import urlsplit

import httptools

_CONNECT_SECONDS = 10.0
#: nothing measured here takes so long; whoever does has hung
_SILENCE_SECONDS = 60.0


class CallFailed(Exception):
    """A call was answered with another status than 200: the figures would be of refusals."""


@dataclass(frozen=True)
class Timed:
    """What callers saw, after the warm-up; `all_calls` are those of the warm-up, too."""

    all_calls: int
    seconds: float
    waits_ms: tuple[float, ...]

    @classmethod
    def none(cls) -> Self:
        """Nothing yet."""
        return cls(0, 0.0, ())

    def __add__(self, other: Self) -> "Timed":
        return Timed(
            self.all_calls + other.all_calls,
            self.seconds + other.seconds,
            self.waits_ms + other.waits_ms,
        )

    @property
    def calls_per_second(self) -> float:
        """Of all callers together."""
        return len(self.waits_ms) / self.seconds

    def quantile_ms(self, percent: int) -> float:
        """The wait that so many percent of the calls did not pass."""
        if len(self.waits_ms) < 2:
            return self.waits_ms[0]
        return statistics.quantiles(self.waits_ms, n=100)[percent - 1]

    def figures(self) -> dict[str, float]:
        """For people and programs."""
        return {
            "requests_per_second": round(self.calls_per_second, 1),
            "p50_ms": round(self.quantile_ms(50), 3),
            "p99_ms": round(self.quantile_ms(99), 3),
        }


@dataclass(frozen=True)
class Asked:
    """Where calls go, and what each of them is."""

    url: str
    key: str
    body: dict[str, Any]

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url)
        assert parts.hostname
        assert parts.port
        return parts.hostname, parts.port

    def request(self) -> bytes:
        """One call as it goes over the wire."""
        host, port = self.address
        body = json.dumps(self.body).encode()
        head = (
            f"POST {urlsplit(self.url).path}/chat/completions HTTP/1.1\r\nhost: {host}:{port}\r\n"
            f"authorization: Bearer {self.key}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


async def timed(target: Asked, callers: int, seconds: float) -> Timed:
    """So many callers for so long; a tenth more beforehand warms up. Raises `CallFailed`."""
    began = time.perf_counter()
    span = _Span(counting=began + seconds / 10, ends=began + seconds * 1.1)
    loop = asyncio.get_running_loop()
    request, ended = target.request(), [loop.create_future() for _ in range(callers)]
    async with asyncio.timeout(_CONNECT_SECONDS):
        connections = [
            await loop.create_connection(lambda each=each: _Caller(request, span, each), *target.address)  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            for each in ended
        ]
    try:
        async with asyncio.timeout(seconds * 1.1 + _SILENCE_SECONDS):
            await asyncio.gather(*ended)
    finally:
        for transport, _ in connections:
            transport.abort()
    return Timed(span.calls, time.perf_counter() - span.counting, tuple(span.waits_ms))


@dataclass
class _Span:
    counting: float
    ends: float
    calls: int = 0
    waits_ms: list[float] = field(default_factory=list)


class _Caller(asyncio.Protocol):
    """One connection that is kept; no task a call, as a task costs more than the rest."""

    def __init__(self, request: bytes, span: _Span, ended: "asyncio.Future[None]") -> None:
        self._request = request
        self._span = span
        self._ended = ended
        self._asked = 0.0
        self._body = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none by class
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_exception(error or CallFailed("The connection was closed."))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, part: bytes) -> None:
        self._body += part

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        if (status := self._parser.get_status_code()) != 200:
            self._ended.set_exception(CallFailed(f"{status}: {self._body[:500]!r}"))
            return
        self._span.calls += 1
        if self._asked >= self._span.counting:
            self._span.waits_ms.append((now - self._asked) * 1000)
        if now < self._span.ends:
            self._ask()
        elif not self._ended.done():
            self._ended.set_result(None)

    def _ask(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self._asked = time.perf_counter()
        self._transport.write(self._request)
