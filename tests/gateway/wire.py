"""A server that answers with exactly the bytes that it is told, piece by piece: what no framework sends."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def event(choices: Sequence[dict[str, Any]] = (), **more: Any) -> bytes:
    """An event with that chunk."""
    return b"data: " + json.dumps({"choices": list(choices), **more}).encode() + b"\n\n"


def said(text: str, finish: str | None = None, index: int = 0) -> dict[str, Any]:
    """A choice of a chunk."""
    return {"index": index, "delta": {"content": text} if text else {}, "finish_reason": finish}


def chunked(*pieces: bytes, end: bool = True) -> list[bytes]:
    """The pieces as a streamed response, with or without its end."""
    return [
        STREAM,
        *(b"%x\r\n%s\r\n" % (len(each), each) for each in pieces),
        *([b"0\r\n\r\n"] if end else []),
    ]


def whole(
    body: bytes | dict[str, Any], *, status: str = "200 OK", kind: str = "application/json"
) -> list[bytes]:
    """A response of a known length."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(text)}\r\n\r\n"
    return [head.encode() + text]


@dataclass
class Wire:
    """What is sent, and what was heard."""

    url: str = ""
    #: the pieces of each answer; the connection is closed after one that ends with `None`
    answers: deque[list[bytes | None]] = field(default_factory=deque)
    requests: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    connections: int = 0
    open: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while await self._answered(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        self.requests.append(json.loads(await reader.readexactly(length)))
        self.heads.append(head)
        for piece in self.answers.popleft():
            if piece is None:
                return False
            writer.write(piece)
            await writer.drain()
            # so that the next one is a piece of its own
            await asyncio.sleep(0.001)
        return True


@asynccontextmanager
async def listening() -> AsyncIterator[Wire]:
    """The server on a free port, for as long as the block."""
    wire = Wire()
    server = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
    wire.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield wire
        server.close()
