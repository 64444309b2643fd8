"""Following a batch or a submission: a snapshot, then its numbered events, then the end.

Postgres has the events and their numbers; the bell only shortens the wait. The order of the reads
is what loses nothing: the last number before the snapshot, which is then as new or newer, and the
state before the events, so that whatever led to a final state is sent before the end is.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

from api.batches import progress_view
from api.dependencies import Services
from api.files import file_view
from domain.batch import BatchKind, ProgressEvent
from domain.diagnosis import DiagnosisDelta
from domain.errors import InvalidInput
from domain.states import BATCH_MACHINE, FILE_MACHINE

EVENTS_AT_ONCE = 500


@dataclass(frozen=True)
class Snapshot:
    """How things stand; the event after it is `last_number + 1`."""

    last_number: int
    document: dict[str, Any]


@dataclass(frozen=True)
class KeepAlive:
    """Nothing happened for a while, and the connection is there."""


@dataclass(frozen=True)
class End:
    """The final state is reached and all that led to it has been sent."""

    document: dict[str, Any]


Message = Snapshot | ProgressEvent | DiagnosisDelta | KeepAlive | End


@dataclass(frozen=True)
class Watch:
    """What is followed, and how to read it."""

    batch_id: str
    #: only this file's events
    file_id: str | None
    #: the state's name, and whether it is final
    read_state: Callable[[], Awaitable[tuple[str, bool]]]
    read_snapshot: Callable[[], Awaitable[dict[str, Any]]]
    #: whether a diagnosis is written meanwhile, whose text is of interest
    diagnosed: bool = False

    def wants(self, event: ProgressEvent) -> bool:
        """Whether the event is of what is followed."""
        return self.file_id is None or event.file_id == self.file_id

    def end(self, state: str, last_number: int) -> End:
        """The last message."""
        file = {} if self.file_id is None else {"submission_id": self.file_id}
        return End({"batch_id": self.batch_id, **file, "state": state, "last_number": last_number})


async def watch_batch(services: Services, tenant_id: str, batch_id: str) -> Watch:
    """The watch of the tenant's batch; raises `NotFound`."""

    async def read_state() -> tuple[str, bool]:
        batch = await services.batches.read(tenant_id, batch_id)
        return batch.state, batch.state in BATCH_MACHINE.final

    async def read_snapshot() -> dict[str, Any]:
        state, _ = await read_state()
        progress = progress_view(await services.batches.progress(batch_id))
        return {"batch_id": batch_id, "state": state, **progress.model_dump(mode="json")}

    batch = await services.batches.read(tenant_id, batch_id)
    diagnosed = batch.opening.kind is BatchKind.DIAGNOSIS
    return Watch(batch_id, None, read_state, read_snapshot, diagnosed)


async def watch_submission(services: Services, tenant_id: str, submission_id: str) -> Watch:
    """The watch of the tenant's submission; raises `NotFound`."""
    first = await services.batches.submission(tenant_id, submission_id)

    async def read_state() -> tuple[str, bool]:
        file = await services.batches.submission(tenant_id, submission_id)
        return file.state, file.state in FILE_MACHINE.final

    async def read_snapshot() -> dict[str, Any]:
        file = file_view(await services.batches.submission(tenant_id, submission_id))
        return {"submission_id": submission_id, **file.model_dump(mode="json")}

    return Watch(first.batch_id, submission_id, read_state, read_snapshot)


async def check_position(services: Services, watch: Watch, after: int | None) -> None:
    """Raise `InvalidInput` for a position that no event has reached."""
    if after is None:
        return
    position = await services.batches.event_position(watch.batch_id)
    if after > position.last_number:
        raise InvalidInput(
            f"after: {after} is beyond the last event, {position.last_number}; leave it out to start afresh.",
            field="after",
        )


async def is_over(services: Services, watch: Watch, number: int) -> bool:
    """Whether a final state is reached and nothing after that number is to come."""
    _, final = await watch.read_state()
    return final and await _all_sent(services, watch, number)


async def follow(services: Services, watch: Watch, after: int | None) -> AsyncGenerator[Message, None]:
    """The messages from that position, or from now; returns without an `End` when the server shuts down."""
    async with AsyncExitStack() as stack:
        stack.enter_context(services.streams.one())
        deltas: asyncio.Queue[DiagnosisDelta] | None = None
        if watch.diagnosed:
            deltas = await stack.enter_async_context(services.diagnosis_deltas.listening(watch.batch_id))
        number = after
        if number is None:
            number = (await services.batches.event_position(watch.batch_id)).last_number
        yield Snapshot(number, await watch.read_snapshot())
        silent_since = _now()
        while not services.draining():
            state, final = await watch.read_state()
            events = await services.batches.events_after(watch.batch_id, number, EVENTS_AT_ONCE)
            for event in filter(watch.wants, events):
                yield event
                silent_since = _now()
            if events:
                number = events[-1].number
                continue
            if final and await _all_sent(services, watch, number):
                yield watch.end(state, number)
                return
            if _now() - silent_since >= services.limits.keep_alive_seconds:
                yield KeepAlive()
                silent_since = _now()
            ringing = services.bell.wait(watch.batch_id, services.limits.bell_seconds)
            async with aclosing(_deltas_until(ringing, deltas)) as heard:
                async for delta in heard:
                    yield delta
                    silent_since = _now()


async def _deltas_until(
    ringing: Coroutine[Any, Any, bool], deltas: "asyncio.Queue[DiagnosisDelta] | None"
) -> AsyncGenerator[DiagnosisDelta, None]:
    """What is said until the bell rings or its time is over; nothing is read of Postgres meanwhile."""
    bell = asyncio.create_task(ringing)
    try:
        while deltas is not None and not bell.done():
            saying = asyncio.create_task(deltas.get())
            try:
                await asyncio.wait({bell, saying}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                # a queue loses nothing when its getter is cancelled
                saying.cancel()
            if saying.done() and not saying.cancelled():
                yield saying.result()
        await bell
    finally:
        bell.cancel()


async def _all_sent(services: Services, watch: Watch, number: int) -> bool:
    position = await services.batches.event_position(watch.batch_id, watch.file_id)
    return position.unnumbered == 0 and position.last_number <= number


def _now() -> float:
    return asyncio.get_running_loop().time()
