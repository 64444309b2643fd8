"""Progress by pub/sub: bells that wake watchers; Postgres holds the events themselves."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Sequence

import structlog

from db.redis.connection import GONE_OR_REFUSED, RedisLink
from domain.batch import AgentState, ProgressEvent

STATE_SECONDS = 24 * 3600
OUTBOX_BELL = "channel:outbox"
_RESUBSCRIBE_SECONDS = 1.0


def progress_channel(batch_id: str) -> str:
    """Where a batch's events are published."""
    return f"batch:{batch_id}:progress"


def state_changes_channel(subject_id: str) -> str:
    """Where the state changes of a batch or a submission are published."""
    return f"channel:state_changes:{subject_id}"


def workflow_state_key(workflow_id: str) -> str:
    """Where the live state of a workflow's agent is."""
    return f"workflow_state:{workflow_id}"


class RedisBell:
    """Tells the relay that events wait."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    async def ring(self) -> None:
        """Raises `RedisUnavailable`; the events wait in the outbox all the same."""
        with self._link.use() as client:
            await client.publish(OUTBOX_BELL, "ring")


class RedisStatePublisher:
    """Live states of agents, for a day."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    async def publish(self, workflow_id: str, submission_id: str, state: AgentState) -> None:
        """Show the state, if that is possible; never raises for an absent Redis."""
        text = json.dumps(vars(state))
        try:
            with self._link.use() as client:
                await client.set(workflow_state_key(workflow_id), text, ex=STATE_SECONDS)
        except GONE_OR_REFUSED:
            return  # the checkpoint is in Postgres, and the view workflow_state_cache reads it

    async def read(self, workflow_id: str) -> AgentState | None:
        """The live state, or `None` (also when Redis is gone)."""
        try:
            with self._link.use() as client:
                text = await client.get(workflow_state_key(workflow_id))
        except GONE_OR_REFUSED:
            return None
        return None if text is None else AgentState(**json.loads(text))


class BellHub:
    """One subscription for each process; whoever waits for a channel is woken by its messages.

    A connection that drops is made anew, and everybody is woken then: a message may have been missed.
    """

    def __init__(self, link: RedisLink, *patterns: str) -> None:
        self._link = link
        self._patterns = patterns
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._log = structlog.get_logger("assay.bells")

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            try:
                await self._listen()
            except GONE_OR_REFUSED as error:
                self._log.info("bells_silent", reason=type(error).__name__)
            await asyncio.sleep(_RESUBSCRIBE_SECONDS)

    async def _listen(self) -> None:
        with self._link.use() as client:
            async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
                await pubsub.psubscribe(*self._patterns)
                self._wake_all()
                while True:
                    message = await pubsub.get_message(timeout=5.0)
                    if message is not None:
                        self._wake(message["channel"])

    async def wait(self, channel: str, timeout_seconds: float) -> bool:
        """Wait for a message on the channel; `False` after the time."""
        event = asyncio.Event()
        self._waiting[channel].add(event)
        try:
            async with asyncio.timeout(timeout_seconds):
                await event.wait()
        except TimeoutError:
            return False
        finally:
            self._waiting[channel].discard(event)
            if not self._waiting[channel]:
                del self._waiting[channel]
        return True

    def _wake(self, channel: str) -> None:
        for event in self._waiting.get(channel, ()):
            event.set()

    def _wake_all(self) -> None:
        for channel in list(self._waiting):
            self._wake(channel)


class RedisProgressBell:
    """Wakes whoever watches a batch."""

    def __init__(self, hub: BellHub) -> None:
        self._hub = hub

    async def wait(self, batch_id: str, timeout_seconds: float) -> bool:
        """Wait for the batch's bell; `False` after the time."""
        return await self._hub.wait(progress_channel(batch_id), timeout_seconds)


class RedisPublisher:
    """Publishes numbered events on the channels that the outside listens to."""

    def __init__(self, link: RedisLink, hub: BellHub) -> None:
        self._link = link
        self._hub = hub

    async def publish(self, events: Sequence[ProgressEvent]) -> None:
        """Publish the events in order; an absent Redis is no error, watchers read Postgres then."""
        if not events:
            return
        try:
            with self._link.use() as client:
                async with client.pipeline(transaction=False) as pipeline:
                    for event in events:
                        text = json.dumps(event.document(), ensure_ascii=False)
                        pipeline.publish(progress_channel(event.batch_id), text)
                        pipeline.publish(state_changes_channel(event.file_id or event.batch_id), text)
                    await pipeline.execute()
        except GONE_OR_REFUSED:
            return

    async def wait_for_ring(self, timeout_seconds: float) -> None:
        """Wait until the bell rings or the time is over."""
        await self._hub.wait(OUTBOX_BELL, timeout_seconds)
