"""`batch:{id}:diagnosis`: the text of a diagnosis while it is written, at most once and stored nowhere (B7.4)."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import structlog

from db.redis.connection import GONE_OR_REFUSED, RedisLink
from domain.diagnosis import DiagnosisDelta

#: of one message; longer text goes in several (X18)
MAX_MESSAGE_BYTES = 8 * 1024
#: text that waits while Redis is slow; the oldest is dropped beyond it, and the offset shows it
MAX_WAITING_CHARACTERS = 64 * 1024
#: deltas that one listener may be behind
MAX_BEHIND = 256
#: what is said meanwhile goes in one message
_PAUSE_SECONDS = 0.1
_LAST_SECONDS = 1.0
_RESUBSCRIBE_SECONDS = 1.0
_CANCEL_AGAIN_SECONDS = 0.05
# batch id, offset and the names around the text
_ENVELOPE_BYTES = 300


def diagnosis_channel(batch_id: str) -> str:
    """Where the text of a batch's diagnosis is published."""
    return f"batch:{batch_id}:diagnosis"


class RedisDiagnosisTexts:
    """Publishes deltas, and hands them to this process's listeners; the ports `DiagnosisTexts` and `…Deltas`.

    A subscription for the process, for as long as anybody listens.
    """

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._listeners: defaultdict[str, set[asyncio.Queue[DiagnosisDelta]]] = defaultdict(set)
        self._hearing: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("assay.diagnosis_texts")

    @asynccontextmanager
    async def publishing(self, batch_id: str) -> AsyncIterator[Callable[[str], None]]:
        """Publish what the block says; a channel that is gone loses text and nothing else."""
        waiting = _Waiting(batch_id)
        publishing = asyncio.create_task(self._publish(waiting))
        try:
            yield waiting.say
        finally:
            waiting.end()
            # the rest of the text, unless Redis is slow; a message under way is not cut off
            await asyncio.wait({publishing}, timeout=_LAST_SECONDS)
            await _stop(publishing)

    @asynccontextmanager
    async def listening(self, batch_id: str) -> AsyncIterator[asyncio.Queue[DiagnosisDelta]]:
        """What is said from now on; a listener that falls behind loses the oldest."""
        queue: asyncio.Queue[DiagnosisDelta] = asyncio.Queue(MAX_BEHIND)
        self._listeners[batch_id].add(queue)
        if self._hearing is None:
            self._hearing = asyncio.create_task(self._hear())
        try:
            yield queue
        finally:
            self._listeners[batch_id].discard(queue)
            if not self._listeners[batch_id]:
                del self._listeners[batch_id]
            if not self._listeners and self._hearing is not None:
                hearing, self._hearing = self._hearing, None
                await _stop(hearing)

    async def _publish(self, waiting: "_Waiting") -> None:
        while not waiting.over:
            await waiting.said.wait()
            await self._send(waiting)
            with suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_SECONDS):
                    await waiting.ended.wait()

    async def _send(self, waiting: "_Waiting") -> None:
        channel = diagnosis_channel(waiting.batch_id)
        try:
            with self._link.use() as client:
                for message in waiting.take():
                    await client.publish(channel, message)
        except GONE_OR_REFUSED:
            return  # nobody waits for it: the result itself comes with its event

    async def _hear(self) -> None:
        while True:
            try:
                await self._listen()
            except GONE_OR_REFUSED as error:
                self._log.info("diagnosis_texts_silent", reason=type(error).__name__)
            await asyncio.sleep(_RESUBSCRIBE_SECONDS)

    async def _listen(self) -> None:
        with self._link.use() as client:
            async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
                await pubsub.psubscribe(diagnosis_channel("*"))
                while True:
                    message = await pubsub.get_message(timeout=5.0)
                    if message is not None:
                        self._hand_on(DiagnosisDelta(**json.loads(message["data"])))

    def _hand_on(self, delta: DiagnosisDelta) -> None:
        for queue in self._listeners.get(delta.batch_id, ()):
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(delta)


async def _stop(task: asyncio.Task[None]) -> None:
    """Cancel the task until it ends: while it connects or subscribes, the driver may swallow a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_CANCEL_AGAIN_SECONDS)


class _Waiting:
    """What was said and not published yet."""

    def __init__(self, batch_id: str) -> None:
        self.batch_id = batch_id
        self.said = asyncio.Event()
        self.ended = asyncio.Event()
        self._text = ""
        self._offset = 0

    def say(self, text: str) -> None:
        """Never waits and never fails."""
        self._text += text
        lost = len(self._text) - MAX_WAITING_CHARACTERS
        if lost > 0:
            self._text = self._text[lost:]
            self._offset += lost
        if self._text:
            self.said.set()

    def end(self) -> None:
        """Nothing more is said."""
        self.ended.set()
        self.said.set()

    @property
    def over(self) -> bool:
        """Whether nothing more is to be published."""
        return self.ended.is_set() and not self._text

    def take(self) -> Iterator[str]:
        """Messages with all that waits."""
        self.said.clear()
        text, self._text = self._text, ""
        for piece in _pieces(text):
            delta = DiagnosisDelta(self.batch_id, piece, self._offset)
            self._offset += len(piece)
            yield json.dumps(vars(delta), ensure_ascii=False)


def _pieces(text: str) -> Iterator[str]:
    """The text in parts that fit into a message, none empty."""
    if not text:
        return
    # half of a character, as a model's tokens may end, is no UTF-8
    text = text.encode(errors="replace").decode()
    if len(json.dumps(text, ensure_ascii=False).encode()) <= MAX_MESSAGE_BYTES - _ENVELOPE_BYTES:
        yield text
        return
    yield from _pieces(text[: len(text) // 2])
    yield from _pieces(text[len(text) // 2 :])
