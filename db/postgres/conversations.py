"""Conversations: a turn is taken by a token in the row, and given back with its messages (O4)."""

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from time import monotonic
from typing import Any
from uuid import UUID, uuid4

import psycopg
import structlog
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from db.postgres.pool import Connection, Postgres
from domain.errors import AssayError, ConversationBusy, NotFound
from domain.gateway import Conversation, Turn

#: no window is larger: what a turn reads of the messages after the summary
MOST_MESSAGES, MOST_BYTES = 1_000, 8 * 1024**2
#: turns of one conversation that one process lets wait
MOST_WAITING = 100
#: between two looks at a turn of another process; the end of one's own is heard at once
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.02, 0.5

# The clock is the server's, for all processes. An update that had to wait for the row sees it as it is then.
TAKE_SQL = """
INSERT INTO conversations AS known (tenant_id, session_id, turn_token, turn_until)
VALUES (%(tenant_id)s, %(session_id)s, %(token)s, clock_timestamp() + make_interval(secs => %(lease_seconds)s))
ON CONFLICT (tenant_id, session_id) DO UPDATE
SET turn_token = excluded.turn_token, turn_until = excluded.turn_until
WHERE known.turn_token IS NULL OR known.turn_until <= clock_timestamp()
RETURNING last_seq, summary, summary_seq
"""
NEWEST_SQL = """
SELECT message FROM (
    SELECT seq, message, sum(octet_length(message::text)) OVER (ORDER BY seq DESC) AS bytes_so_far
    FROM (SELECT seq, message FROM conversation_messages
          WHERE tenant_id = %(tenant_id)s AND session_id = %(session_id)s AND seq > %(after)s
          ORDER BY seq DESC LIMIT %(most_messages)s) newest
) sized
WHERE bytes_so_far <= %(most_bytes)s ORDER BY seq
"""
RENEW_SQL = """
UPDATE conversations SET turn_until = clock_timestamp() + make_interval(secs => %s)
WHERE tenant_id = %s AND session_id = %s AND turn_token = %s
"""
GIVE_BACK_SQL = """
UPDATE conversations SET turn_token = NULL, turn_until = NULL
WHERE tenant_id = %s AND session_id = %s AND turn_token = %s
"""
LOCK_SQL = """
SELECT last_seq, turn_token FROM conversations WHERE tenant_id = %s AND session_id = %s FOR UPDATE
"""
APPENDED_SQL = """
SELECT max(seq) AS last_seq FROM conversation_messages
WHERE tenant_id = %s AND session_id = %s AND call_id = %s
"""
APPEND_SQL = """
WITH added AS (
    INSERT INTO conversation_messages (tenant_id, session_id, seq, message, call_id)
    SELECT %(tenant_id)s, %(session_id)s, %(last_seq)s::integer + place, message, %(call_id)s
    FROM jsonb_array_elements(%(messages)s) WITH ORDINALITY AS each (message, place)
)
UPDATE conversations
SET last_seq = last_seq + jsonb_array_length(%(messages)s), turn_token = NULL, turn_until = NULL,
    updated_at = now()
WHERE tenant_id = %(tenant_id)s AND session_id = %(session_id)s
RETURNING last_seq
"""
SUMMARISE_SQL = """
UPDATE conversations SET summary = %(summary)s, summary_seq = %(up_to)s, updated_at = now()
WHERE tenant_id = %(tenant_id)s AND session_id = %(session_id)s
  AND summary_seq < %(up_to)s AND %(up_to)s <= last_seq
"""
_CONVERSATION = """
session_id, last_seq, summary, summary_seq, created_at, updated_at,
turn_token IS NOT NULL AND turn_until > clock_timestamp() AS busy
"""
READ_SQL = f"SELECT {_CONVERSATION} FROM conversations WHERE tenant_id = %s AND session_id = %s"
LIST_SQL = f"""
SELECT {_CONVERSATION} FROM conversations WHERE tenant_id = %s
ORDER BY updated_at DESC, session_id LIMIT %s OFFSET %s
"""
COUNT_SQL = "SELECT count(*) AS total FROM conversations WHERE tenant_id = %s"
MESSAGES_SQL = """
SELECT message FROM conversation_messages
WHERE tenant_id = %s AND session_id = %s AND seq > %s ORDER BY seq LIMIT %s
"""
DELETE_SQL = "DELETE FROM conversations WHERE tenant_id = %s AND session_id = %s"

#: what jsonb and text cannot hold: U+0000 and half surrogate pairs
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")

log = structlog.get_logger(__name__)


def _nobody() -> None:
    """Nobody counts."""


class _Line:
    """The turns of one conversation that wait in this process: the first one looks, the others stand behind."""

    def __init__(self) -> None:
        self.count = 0
        self.first = asyncio.Lock()
        #: a turn of this process has ended
        self.ended = asyncio.Event()


class PostgresConversations:
    """Conversations by tenant and session; one turn at a time, whatever process takes it."""

    def __init__(self, postgres: Postgres, *, on_conflict: Callable[[], None] = _nobody) -> None:
        """`on_conflict` hears of each turn whose messages were refused because it was lost."""
        self._postgres = postgres
        self._on_conflict = on_conflict
        self._lines: dict[tuple[str, str], _Line] = {}

    async def take_turn(
        self, tenant_id: str, session_id: str, *, wait_seconds: float, lease_seconds: float
    ) -> Turn:
        """The next turn, which ends by itself after the lease; a conversation that is not there begins.

        Turns of one process come in the order in which they were asked for. No connection is held while one
        waits. Raises `ConversationBusy` when the turn under way lasts longer than `wait_seconds`.
        """
        if wait_seconds <= 0:
            turn = await self._take(tenant_id, session_id, lease_seconds)
        else:
            deadline = monotonic() + wait_seconds
            with self._line(tenant_id, session_id) as line:
                turn = await self._stand_in_line(line, deadline, tenant_id, session_id, lease_seconds)
        if turn is None:
            raise _busy(session_id)
        return turn

    @contextmanager
    def _line(self, tenant_id: str, session_id: str) -> Iterator[_Line]:
        key = (tenant_id, session_id)
        line = self._lines.setdefault(key, _Line())
        if line.count >= MOST_WAITING:
            raise _busy(session_id, f"{MOST_WAITING} turns wait for it here already")
        line.count += 1
        try:
            yield line
        finally:
            line.count -= 1
            if not line.count:
                del self._lines[key]

    async def _stand_in_line(
        self, line: _Line, deadline: float, tenant_id: str, session_id: str, lease_seconds: float
    ) -> Turn | None:
        try:
            async with asyncio.timeout(deadline - monotonic()):
                await line.first.acquire()
        except TimeoutError:
            return None
        try:
            return await self._look(line, deadline, tenant_id, session_id, lease_seconds)
        finally:
            line.first.release()

    async def _look(
        self, line: _Line, deadline: float, tenant_id: str, session_id: str, lease_seconds: float
    ) -> Turn | None:
        wait = FIRST_WAIT_SECONDS
        while True:
            line.ended.clear()
            turn = await self._take(tenant_id, session_id, lease_seconds)
            left = deadline - monotonic()
            if turn is not None or left <= 0:
                return turn
            # only the wait is given up: a look that is cut off might have taken the turn
            await _heard(line.ended, min(wait, left))
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    async def _take(self, tenant_id: str, session_id: str, lease_seconds: float) -> Turn | None:
        token = str(uuid4())
        known: dict[str, Any] = {"tenant_id": tenant_id, "session_id": session_id}
        async with self._postgres.transaction() as connection:
            taking = known | {"token": token, "lease_seconds": lease_seconds}
            row = await (await connection.execute(TAKE_SQL, taking)).fetchone()
            if row is None:
                return None
            # a statement of its own: the one above began before the turn before this one ended
            newest = await _newest(connection, known | {"after": row["summary_seq"]})
        return Turn(session_id, token, row["last_seq"], row["summary"], newest)

    async def renew(self, tenant_id: str, turn: Turn, *, lease_seconds: float) -> bool:
        """Let the turn last so long from now on; false if it was lost."""
        parameters = [lease_seconds, tenant_id, turn.session_id, turn.token]
        return await self._postgres.run(RENEW_SQL, parameters) == 1

    async def append(
        self, tenant_id: str, turn: Turn, call_id: UUID, messages: Sequence[Mapping[str, Any]]
    ) -> int:
        """Append the turn's messages and give it back; answers the last number. The same call appends once.

        A turn whose lease is over still appends if no other was taken. Characters that Postgres cannot hold
        become U+FFFD. Raises `ConversationBusy` when the turn was lost to another one, or to `delete`.
        """
        try:
            async with self._postgres.transaction() as connection:
                last_seq = await _append(connection, tenant_id, turn, call_id, messages)
        except ConversationBusy:
            self._on_conflict()
            log.info("conversation_turn_lost", tenant_id=tenant_id, call_id=str(call_id))
            raise
        self._tell_ended(tenant_id, turn)
        return last_seq

    async def give_back(self, tenant_id: str, turn: Turn) -> None:
        """End the turn without a message; never raises: what cannot be told ends with the lease."""
        try:
            await self._postgres.run(GIVE_BACK_SQL, [tenant_id, turn.session_id, turn.token])
        except (AssayError, psycopg.Error) as error:
            log.info("conversation_turn_left", tenant_id=tenant_id, reason=str(error))
        self._tell_ended(tenant_id, turn)

    def _tell_ended(self, tenant_id: str, turn: Turn) -> None:
        if (line := self._lines.get((tenant_id, turn.session_id))) is not None:
            line.ended.set()

    async def summarise(self, tenant_id: str, session_id: str, summary: str, up_to: int) -> bool:
        """State a summary of the committed messages up to there; false if one as late, or no message, is there."""
        known = {"tenant_id": tenant_id, "session_id": session_id}
        stated = known | {"summary": _storable(summary), "up_to": up_to}
        return await self._postgres.run(SUMMARISE_SQL, stated) == 1

    async def read(self, tenant_id: str, session_id: str) -> Conversation:
        """The conversation; raises `NotFound`."""
        row = await self._postgres.row(READ_SQL, [tenant_id, session_id])
        if row is None:
            raise _no_conversation(session_id)
        return _conversation(row)

    async def messages(
        self, tenant_id: str, session_id: str, *, after: int, limit: int
    ) -> Sequence[Mapping[str, Any]]:
        """The messages that follow that number, in order; none of a conversation that is not there."""
        rows = await self._postgres.rows(MESSAGES_SQL, [tenant_id, session_id, after, limit])
        return [row["message"] for row in rows]

    async def list_of_tenant(
        self, tenant_id: str, page: int, page_size: int
    ) -> tuple[list[Conversation], int]:
        """One page of the conversations, the last changed first, and how many there are."""
        rows = await self._postgres.rows(LIST_SQL, [tenant_id, page_size, (page - 1) * page_size])
        counted = await self._postgres.row(COUNT_SQL, [tenant_id])
        return [_conversation(row) for row in rows], counted["total"] if counted else 0

    async def delete(self, tenant_id: str, session_id: str) -> None:
        """Forget the conversation; the turn under way is lost. Raises `NotFound`."""
        if not await self._postgres.run(DELETE_SQL, [tenant_id, session_id]):
            raise _no_conversation(session_id)


async def _newest(connection: Connection, known: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    bounds = {"most_messages": MOST_MESSAGES, "most_bytes": MOST_BYTES}
    rows = await (await connection.execute(NEWEST_SQL, {**known, **bounds})).fetchall()
    return tuple(row["message"] for row in rows)


async def _append(
    connection: Connection, tenant_id: str, turn: Turn, call_id: UUID, messages: Sequence[Mapping[str, Any]]
) -> int:
    row = await (await connection.execute(LOCK_SQL, [tenant_id, turn.session_id])).fetchone()
    if row is None:
        raise ConversationBusy(
            f"The conversation {turn.session_id} was deleted during this turn.", field="session"
        )
    # under the row's lock, as a statement of its own: the same call may have appended a moment ago
    known = await connection.execute(APPENDED_SQL, [tenant_id, turn.session_id, call_id])
    before = await known.fetchone()
    if before is not None and before["last_seq"] is not None:
        await connection.execute(GIVE_BACK_SQL, [tenant_id, turn.session_id, turn.token])
        return int(before["last_seq"])
    if row["turn_token"] != turn.token:
        raise ConversationBusy(
            f"The turn of {turn.session_id} lasted too long and was lost to another one; repeat the call with "
            "its Idempotency-Key to append its reply, which is not paid for again.",
            field="session",
        )
    appending = {
        "tenant_id": tenant_id,
        "session_id": turn.session_id,
        "last_seq": row["last_seq"],
        "call_id": call_id,
        "messages": Jsonb(_storable(messages)),
    }
    appended = await (await connection.execute(APPEND_SQL, appending)).fetchone()
    assert appended is not None
    return int(appended["last_seq"])


async def _heard(event: asyncio.Event, within_seconds: float) -> None:
    try:
        async with asyncio.timeout(within_seconds):
            await event.wait()
    except TimeoutError:
        return


def _storable(value: Any) -> Any:
    """The JSON value as Postgres can hold it."""
    if isinstance(value, str):
        return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, Mapping):
        return {_storable(name): _storable(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _conversation(row: DictRow) -> Conversation:
    return Conversation(
        session_id=row["session_id"],
        last_seq=row["last_seq"],
        summary=row["summary"],
        summary_seq=row["summary_seq"],
        busy=row["busy"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _busy(session_id: str, reason: str = "another turn of it is under way") -> ConversationBusy:
    # no "try again": clients do not do so by themselves, and whoever asked for a refusal wants to hear it
    return ConversationBusy(f"The conversation {session_id} is busy: {reason}.", field="session")


def _no_conversation(session_id: str) -> NotFound:
    return NotFound(f"There is no conversation {session_id}.", field="session")
