"""The Postgres pool; the one place where the driver's errors become ours."""

import re
import select
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection, errors
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from domain.errors import AssayError, EpochSuperseded, NotFound, PoolExhausted, PostgresUnavailable

Connection = AsyncConnection[DictRow]
Pool = AsyncConnectionPool[Connection]

#: may append to the ledger and not rewrite it (migration 0003); migrations run as the owner
APPLICATION_ROLE = "assay_app"

#: a connection that was in order so lately is asked only if its server has said something since
FRESH_SECONDS = 1.0

_EPOCH_SUPERSEDED = "AS001"


def open_pool(
    url: str,
    *,
    min_size: int,
    max_size: int,
    acquire_timeout_seconds: float,
    check_on_acquire: bool,
    idle_seconds: float = 300,
    lifetime_seconds: float = 3600,
    queue_limit: int = 500,
    name: str = "assay",
    role: str | None = None,
) -> Pool:
    """A pool of autocommit connections, not opened yet; transactions are visible at the call.

    `check_on_acquire` costs a round trip for each use of a connection that has rested longer than
    `FRESH_SECONDS`: for callers that cannot retry, such as the API.
    `role` is what every session acts as, such as `APPLICATION_ROLE`; the login's own by default.
    """
    rests = _Rests()
    options = "-c statement_timeout=30000 -c lock_timeout=10000"
    return AsyncConnectionPool(
        url,
        connection_class=AsyncConnection[DictRow],
        kwargs={
            "autocommit": True,
            "row_factory": dict_row,
            "application_name": name,
            "connect_timeout": 5,
            # a server that vanished without a word is noticed in half a minute
            "keepalives_idle": 15,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "options": f"{options} -c role={role}" if role else options,
        },
        min_size=min_size,
        max_size=max_size,
        timeout=acquire_timeout_seconds,
        max_waiting=queue_limit,
        max_idle=idle_seconds,
        max_lifetime=lifetime_seconds,
        reconnect_timeout=10,
        check=rests.check if check_on_acquire else None,
        reset=rests.begin if check_on_acquire else None,
        name=name,
        open=False,
    )


class _Rests:
    """Since when each connection of a pool rests."""

    def __init__(self) -> None:
        self._began: WeakKeyDictionary[Connection, float] = WeakKeyDictionary()

    async def begin(self, connection: Connection) -> None:
        """It came back in order."""
        self._began[connection] = monotonic()

    async def check(self, connection: Connection) -> None:
        """Raise if the connection is broken; one that has hardly rested and heard nothing is not asked."""
        rested_seconds = monotonic() - self._began.get(connection, float("-inf"))
        if rested_seconds > FRESH_SECONDS or _has_heard(connection):
            await AsyncConnectionPool.check_connection(connection)


def _has_heard(connection: Connection) -> bool:
    """Whether something came in while nothing was asked: a server that ends a connection says so."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


class Postgres:
    """Connections and transactions whose failures are conditions of ours."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """An autocommit connection: each statement is its own transaction."""
        with translated_errors():
            async with self.pool.connection() as connection:
                yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection within one transaction, committed at the end of the block."""
        with translated_errors():
            async with self.pool.connection() as connection, connection.transaction():
                yield connection

    async def row(self, sql: str, parameters: Any = None) -> DictRow | None:
        """The first row that the statement answers, in a transaction of its own."""
        async with self.connection() as connection:
            cursor = await connection.execute(sql, parameters)
            return await cursor.fetchone()

    async def rows(self, sql: str, parameters: Any = None) -> list[DictRow]:
        """All rows that the statement answers, in a transaction of its own."""
        async with self.connection() as connection:
            cursor = await connection.execute(sql, parameters)
            return await cursor.fetchall()

    async def run(self, sql: str, parameters: Any = None) -> int:
        """The number of rows that the statement changed, in a transaction of its own."""
        async with self.connection() as connection:
            return (await connection.execute(sql, parameters)).rowcount

    async def ping(self) -> None:
        """Raises `PostgresUnavailable`."""
        await self.row("SELECT 1 AS one")

    def stats(self) -> dict[str, int]:
        """The pool's own figures."""
        return dict(self.pool.get_stats())


@contextmanager
def translated_errors() -> Iterator[None]:
    """Raise the driver's errors as conditions of ours; what is a defect stays what it is."""
    try:
        yield
    except AssayError:
        raise
    except (PoolTimeout, TooManyRequests) as error:
        raise PoolExhausted(f"No Postgres connection became free in time: {error}") from error
    except PoolClosed as error:
        raise PostgresUnavailable("The Postgres pool is closed: this process is shutting down.") from error
    except psycopg.Error as error:
        if (condition := _condition(error)) is None:
            raise
        raise condition from error


def _condition(error: psycopg.Error) -> AssayError | None:
    if error.sqlstate == _EPOCH_SUPERSEDED:
        return EpochSuperseded(_first_line(error))
    if isinstance(error, errors.InvalidTextRepresentation) and "uuid" in str(error):
        return NotFound("There is no such id.")
    if is_transient(error):
        return PostgresUnavailable(f"Postgres does not answer: {_first_line(error)}")
    return None


def is_transient(error: psycopg.Error) -> bool:
    """Whether the same statements may succeed when they are tried again."""
    # class 40: serialization failure, deadlock; 55P03: lock not available; 57: shutdown, timeouts
    transient = (error.sqlstate or "").startswith(("40", "55P03", "57", "53", "08"))
    return transient or isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))


def _first_line(error: psycopg.Error) -> str:
    # the driver's connection errors span lines and may carry the address, never the password
    return re.sub(r"\s+", " ", str(error)).strip()[:300]
