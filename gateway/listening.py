"""A caller that hears a reply while it is being written, and may leave at any time without disturbing it."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any

import structlog

from domain.completion import OnChunk

#: who takes nothing for so long has gone: the upstream's stream must not stand still for it
STALL_SECONDS = 30.0


class Listener:
    """Tells the caller chunk by chunk for as long as it listens; the call itself never notices."""

    def __init__(self, on_chunk: OnChunk | None = None) -> None:
        #: whether the caller wants chunks, also after it has gone
        self.wants_chunks = on_chunk is not None
        #: whether it got a part of a reply: nothing else may follow but the rest of it
        self.told = False
        self.first_at: float | None = None
        self._on_chunk = on_chunk
        self._telling: asyncio.Timeout | None = None
        #: the model's time, which does not run while the caller takes its own
        self.model_time: asyncio.Timeout | None = None

    async def hear(self, choices: Sequence[Mapping[str, Any]]) -> None:
        """Pass a chunk on; never raises for a caller's sake."""
        if self.first_at is None:
            self.first_at = monotonic()
        if self._on_chunk is None:
            return
        self.told = True
        try:
            with self._model_waits():
                async with asyncio.timeout(STALL_SECONDS) as self._telling:
                    await self._on_chunk(choices)
        except Exception as error:  # noqa: BLE001  # whatever the caller's end raises, the reply is paid for
            structlog.get_logger("assay.gateway").info("listener_gone", reason=type(error).__name__)
            self._on_chunk = None
        finally:
            self._telling = None

    @contextmanager
    def _model_waits(self) -> Iterator[None]:
        """Stop the model's clock: a slow reader must not turn a reply that is coming into a doubt."""
        if self.model_time is None or (ends := self.model_time.when()) is None:
            yield
            return
        now = asyncio.get_running_loop().time
        began = now()
        self.model_time.reschedule(None)
        try:
            yield
        finally:
            self.model_time.reschedule(ends + now() - began)

    def leave(self) -> None:
        """The caller has gone: nothing is told any more, and nobody waits for it."""
        self._on_chunk = None
        if self._telling is not None:
            self._telling.reschedule(asyncio.get_running_loop().time())
