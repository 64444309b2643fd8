"""A client's own retry is found again in the ledger, unless its call was delivered, which Redis remembers."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol
from uuid import uuid4

import structlog

from db.redis.connection import GONE_OR_REFUSED, RedisLink
from domain.ports import Clock

#: how long after a call its client may come again for it (O10)
RETRY_SECONDS = 600
#: marks on their way to Redis; one more is dropped, and a retry of its call is answered from the journal
MOST_WAITING = 10_000

#: refusals of one request that are remembered; the retry of one more may take an equal call's reply
MOST_REFUSED = 1_000

#: ids that a client named itself are found by their names
UNNAMED = "call-"


def delivered_key(call_id: str) -> str:
    """Where it is remembered that a reply went out whole."""
    return f"client_call:{call_id}:delivered"


def refused_key(key_id: str, request_hash: str) -> str:
    """Where it is remembered how many equal calls were refused and have not come again."""
    return f"client_call:{key_id}:{request_hash}:refused"


class Books(Protocol):
    """The ledger's own register of outside calls."""

    async def client_calls(self, api_key_id: str, request_hash: str, since: datetime) -> Sequence[str]:
        """The calls that a key's client made with this request, newest first."""
        ...


class StoredClientCalls:
    """The port `ClientCalls` over the ledger and Redis.

    Without Redis every call counts as not delivered: rather the same reply twice than paid twice.
    """

    def __init__(self, books: Books, redis: RedisLink, clock: Clock) -> None:
        self._books = books
        self._redis = redis
        self._clock = clock
        #: kept until Redis has them: a retry in this very moment is told so
        self._waiting: dict[str, asyncio.Future[object]] = {}
        self._failing = False
        self._log = structlog.get_logger("assay.client_calls")

    async def new(self) -> str:
        """An id for a call that is none's retry."""
        return UNNAMED + uuid4().hex

    async def retried(self, key_id: str, request_hash: str) -> str | None:
        """The id of the newest call of that key and request within ten minutes that was not delivered yet.

        None for the retry of a call that was refused, which is a new call; it uses that refusal up.
        """
        if await self._was_refused(key_id, request_hash):
            return None
        since = self._clock.now() - timedelta(seconds=RETRY_SECONDS)
        calls = await self._books.client_calls(key_id, request_hash, since)
        unnamed = [each for each in calls if each.startswith(UNNAMED)]
        marked = await self._known(unnamed)
        return next((each for each in unnamed if each not in marked), None)

    async def refused(self, key_id: str, request_hash: str) -> None:
        """A new call was refused before anything was held: its retry is no other call's; never raises."""
        key = refused_key(key_id, request_hash)
        try:
            with self._redis.use() as client:
                async with client.pipeline(transaction=True) as pipeline:
                    pipeline.rpush(key, "1")
                    pipeline.ltrim(key, 0, MOST_REFUSED - 1)
                    pipeline.expire(key, RETRY_SECONDS)
                    await pipeline.execute()
        except GONE_OR_REFUSED as error:
            self._log.info("refusal_not_marked", reason=type(error).__name__)

    async def delivered(self, call_id: str) -> None:
        """The reply went out whole; never raises, and does not wait until Redis has the mark."""
        if len(self._waiting) < MOST_WAITING:
            mark = self._redis.ask("SET", delivered_key(call_id), "1", "EX", RETRY_SECONDS)
            self._waiting[call_id] = mark
            mark.add_done_callback(lambda done: self._marked(call_id, done))

    async def close(self) -> None:
        """Wait until every mark has gone out."""
        while self._waiting:
            await asyncio.wait(self._waiting.values())

    def _marked(self, call_id: str, mark: "asyncio.Future[object]") -> None:
        if self._waiting.get(call_id) is mark:
            del self._waiting[call_id]
        error = None if mark.cancelled() else mark.exception()
        if error is not None and not self._failing:
            self._log.info("deliveries_not_marked", reason=type(error).__name__)
        self._failing = error is not None

    async def _was_refused(self, key_id: str, request_hash: str) -> bool:
        # a list and not a number: one of two retries at once takes the only refusal, without a script
        try:
            with self._redis.use() as client:
                return await client.lpop(refused_key(key_id, request_hash)) is not None
        except GONE_OR_REFUSED:
            return False

    async def _known(self, call_ids: Sequence[str]) -> set[str]:
        waiting = set(self._waiting)
        if not call_ids:
            return waiting
        try:
            with self._redis.use() as client:
                found = await client.mget([delivered_key(each) for each in call_ids])
        except GONE_OR_REFUSED:
            return waiting
        return waiting | {each for each, mark in zip(call_ids, found, strict=True) if mark is not None}
