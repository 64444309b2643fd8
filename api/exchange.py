"""The other end of one request: whether the client is still there, and what is on its way to it."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Send

log = structlog.get_logger(__name__)

Answer = TypeVar("Answer")

#: chunks of a reply that wait for a slow client; its model waits for it then
MOST_WAITING = 64
#: an answer so small has room beside what waits for the client already: its end need not wait for it
SMALL_BYTES = 16 * 1024


class Exchange:
    """One request, read already, and its answer, which is written by hand.

    Whatever waits for the client raises `ClientDisconnect` once it has gone, or has taken nothing for
    `stall_seconds`.
    """

    def __init__(self, receive: Receive, send: Send, *, stall_seconds: float) -> None:
        self._leaving = asyncio.ensure_future(_disconnected(receive))
        self._send = send
        self._stall_seconds = stall_seconds
        self.begun = False

    def on_leave(self, callback: Callable[[], None]) -> None:
        """Call back once the client goes."""
        self._leaving.add_done_callback(lambda _: callback())

    def close(self) -> None:
        """Watch the client no longer."""
        self._leaving.cancel()

    def check(self) -> None:
        """Raise `ClientDisconnect` if the client has gone."""
        if self._leaving.done():
            raise ClientDisconnect

    async def while_there(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """What the work answers; it is cancelled when the client goes."""
        working = asyncio.ensure_future(work)
        try:
            await asyncio.wait({working, self._leaving}, return_when=asyncio.FIRST_COMPLETED)
            self.check()
            return working.result()
        finally:
            await cancelled(working)

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Send status and headers."""
        self.begun = True
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, part: bytes) -> None:
        """Send a part of the body."""
        await self._send_body(part, more=True)

    async def end(self, part: bytes = b"") -> None:
        """End the body with a last part, once everything before it has left this process."""
        await self._send_body(part, more=False)
        # a connection that broke while the server waited for room is no error of the server's
        self.check()

    async def answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Send a whole answer."""
        await self.begin(status, {**headers, "content-length": str(len(body))})
        if len(body) > SMALL_BYTES:
            await self.write(body)
            body = b""
        await self.end(body)

    async def _send_body(self, body: bytes, *, more: bool) -> None:
        self.check()
        try:
            # the server waits here for room: for what was sent before this part
            async with asyncio.timeout(self._stall_seconds):
                await self._send({"type": "http.response.body", "body": body, "more_body": more})
        except TimeoutError as error:
            # without a last part the server cuts the connection
            log.info("slow_client_cut", seconds=self._stall_seconds)
            raise ClientDisconnect from error


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def cancelled(task: "asyncio.Future[Any]") -> None:
    """Cancel what still runs, and wait until it has stopped; what it raised is told to nobody any more."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


class Relay:
    """Chunks between a model and one client: a bounded few wait, and none once it has ended."""

    def __init__(self, at_most: int = MOST_WAITING) -> None:
        self._at_most = at_most
        self._waiting: deque[Sequence[Mapping[str, Any]]] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._ended = False

    async def put(self, choices: Sequence[Mapping[str, Any]]) -> None:
        """Hand a chunk on, once there is room for it; an `OnChunk`."""
        while len(self._waiting) >= self._at_most and not self._ended:
            self._room.clear()
            await self._room.wait()
        if not self._ended:
            self._waiting.append(choices)
            self._changed.set()

    async def take(self) -> list[Sequence[Mapping[str, Any]]]:
        """All chunks that wait, at least one; none when it has ended."""
        while not self._waiting and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        taken = list(self._waiting)
        self._waiting.clear()
        self._room.set()
        return taken

    def end(self) -> None:
        """Nothing more is put; what waits can still be taken."""
        self._ended = True
        self._changed.set()
        self._room.set()
