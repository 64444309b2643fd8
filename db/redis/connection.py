"""The Redis pool; the one place where the driver's errors become ours."""

import asyncio
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha1
from typing import Any, NamedTuple

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,  # noqa: A004  # the driver's name
    NoScriptError,
    ResponseError,
    TimeoutError,  # noqa: A004  # the driver's name
)

from db.bunches import Bunches
from domain.errors import RedisUnavailable

#: after a failure, how long callers are refused at once instead of each waiting for its own time-out
_DOWN_SECONDS = 1.0

#: what is met by writes that may be lost: Redis is gone, or refuses (full, read-only)
GONE_OR_REFUSED = (RedisUnavailable, ResponseError)


class Script(NamedTuple):
    """A script, and the name by which a server knows it once it has run it."""

    text: str
    sha1: str

    @classmethod
    def of(cls, text: str) -> "Script":
        """The script of that text."""
        return cls(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


class RedisLink:
    """A client that fails fast while Redis is gone, and knows that it is."""

    def __init__(self, client: Redis) -> None:
        self.client = client
        self._down_until = 0.0
        self._dropping: set[asyncio.Future[None]] = set()
        self._bunches: Bunches[tuple[str | int, ...], Any] = Bunches(self._visit)

    @classmethod
    def to(cls, url: str, *, max_connections: int, timeout_seconds: float) -> "RedisLink":
        """A link that connects on first use."""
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=max_connections,
            timeout=timeout_seconds,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=min(timeout_seconds, 1.0),
            socket_keepalive=True,
            health_check_interval=30,
            decode_responses=True,
            # one try: what is behind it is a cache, and the caller goes on without
            retry=Retry(NoBackoff(), 0),
        )
        return cls(Redis(connection_pool=pool))

    @property
    def degraded(self) -> bool:
        """Whether the last try failed, a moment ago."""
        return time.monotonic() < self._down_until

    @contextmanager
    def use(self) -> Iterator[Redis]:
        """The client; raises `RedisUnavailable` for unreachability and lets refusals through."""
        if self.degraded:
            raise RedisUnavailable("Redis did not answer a moment ago.")
        try:
            yield self.client
        except (ConnectionError, TimeoutError, BusyLoadingError, OSError) as error:
            self._down_until = time.monotonic() + _DOWN_SECONDS
            self._drop_idle_connections()
            raise RedisUnavailable(f"Redis does not answer: {type(error).__name__}") from error

    def ask(self, *command: str | int) -> "asyncio.Future[Any]":
        """The answer to a command, which goes with those of other callers; for what is asked all the time.

        Commands of this process are done in the order of asking. Raises `RedisUnavailable` and lets refusals
        through.
        """
        return self._bunches.ask(command)

    def run(
        self, script: Script, keys: Sequence[str], arguments: Sequence[str | int]
    ) -> Coroutine[Any, Any, Any]:
        """As `ask`, what the script answers; it has its turn from now on, and not from the first wait for it."""
        asked = (len(keys), *keys, *arguments)
        return self._run(script, asked, self.ask("EVALSHA", script.sha1, *asked))

    async def _run(self, script: Script, asked: tuple[str | int, ...], answer: "asyncio.Future[Any]") -> Any:
        try:
            return await answer
        except NoScriptError:
            # a server that is new, or was restarted: nothing was done yet
            return await self.ask("EVAL", script.text, *asked)

    async def _visit(self, commands: Sequence[tuple[str | int, ...]]) -> list[Any]:
        with self.use() as client:
            async with client.pipeline(transaction=False) as pipeline:
                for each in commands:
                    pipeline.execute_command(*each)
                return await pipeline.execute(raise_on_error=False)

    def _drop_idle_connections(self) -> None:
        """Let go of the others too: after a restart of Redis each would fail once, and degrade once."""
        dropping = asyncio.ensure_future(self.client.connection_pool.disconnect(inuse_connections=False))
        self._dropping.add(dropping)
        dropping.add_done_callback(self._dropped)

    def _dropped(self, dropping: "asyncio.Future[None]") -> None:
        self._dropping.discard(dropping)
        # a connection that is gone may object to being closed: nobody minds
        if not dropping.cancelled():
            dropping.exception()

    async def ping(self) -> None:
        """Raises `RedisUnavailable`."""
        with self.use() as client:
            await client.ping()

    async def close(self) -> None:
        """Close every connection."""
        await self.client.aclose()
        await self.client.connection_pool.aclose()
