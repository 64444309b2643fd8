"""`channel:workflow_events:{workflow_id}`: says what was stored, and takes bare messages, at most once (G6.2)."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import structlog

from db.redis.connection import GONE_OR_REFUSED, RedisLink
from domain.external_events import ExternalEvent

_CHANNEL = "channel:workflow_events:"
#: only what we publish ourselves has it: such an event is in Postgres, and delivered from there
STORED = "stored"
_RESUBSCRIBE_SECONDS = 1.0


def workflow_events_channel(workflow_id: str) -> str:
    """Where events for a workflow are published."""
    return f"{_CHANNEL}{workflow_id}"


class RedisWorkflowEvents:
    """Events by pub/sub: nobody depends on them, as what must arrive is in Postgres."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._log = structlog.get_logger("assay.events")

    async def publish(self, workflow_id: str, event: ExternalEvent) -> None:
        """Say that the event was stored, if that is possible."""
        message = json.dumps(vars(event) | {STORED: True}, ensure_ascii=False)
        try:
            with self._link.use() as client:
                await client.publish(workflow_events_channel(workflow_id), message)
        except GONE_OR_REFUSED:
            return  # the relay looks by itself

    async def listen(self, heard: Callable[[str, str], Awaitable[None]]) -> None:
        """Pass on every message and the workflow id in its channel's name, one at a time, until cancelled."""
        while True:
            try:
                await self._listen(heard)
            except GONE_OR_REFUSED as error:
                self._log.info("events_silent", reason=type(error).__name__)
            await asyncio.sleep(_RESUBSCRIBE_SECONDS)

    async def _listen(self, heard: Callable[[str, str], Awaitable[None]]) -> None:
        with self._link.use() as client:
            async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
                await pubsub.psubscribe(workflow_events_channel("*"))
                while True:
                    message = await pubsub.get_message(timeout=5.0)
                    if message is not None:
                        await heard(message["channel"].removeprefix(_CHANNEL), message["data"])
