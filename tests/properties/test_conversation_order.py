"""Property 32: whatever turns meet in a conversation, it is gapless, in order, and has each call once."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from uuid import UUID, uuid4

import pytest
from hypothesis import strategies as st

from db.postgres.conversations import PostgresConversations
from db.postgres.pool import Postgres
from db.postgres.tenants import ENSURE_TENANT_SQL
from domain.errors import ConversationBusy
from domain.gateway import Turn
from tests.db.stage import opened_postgres
from tests.properties.drawing import drawn

TENANT = "tenant-of-property-32"
PROCESSES = 3
#: cases that share the servers
AT_ONCE = 25
SHORT_SECONDS, LONG_SECONDS = 0.004, 60.0

Ending = Literal[
    "append", "repeat", "repeat_in_a_new_turn", "summarise", "give_back", "crash", "come_too_late"
]


@dataclass
class Call:
    """One drawn call, and what became of it."""

    process: int
    ending: Ending
    waits: bool
    begins_after_ms: int
    lasts_ms: int
    size: int
    id: UUID = field(default_factory=uuid4)
    #: the turn in which the messages were written, and the number that was answered
    turn: Turn | None = None
    last_seq: int = 0

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What it appends."""
        return [{"role": "user", "content": f"{self.id}/{place}"} for place in range(self.size)]


CALLS = st.lists(
    st.builds(
        Call,
        process=st.integers(0, PROCESSES - 1),
        ending=st.sampled_from(Ending.__args__),  # type: ignore[attr-defined]  # a Literal's own values
        waits=st.booleans(),
        begins_after_ms=st.integers(0, 6),
        lasts_ms=st.integers(0, 3),
        size=st.integers(1, 3),
    ),
    min_size=2,
    max_size=9,
)


@pytest.fixture(scope="module")
async def postgres(session_database_url: str) -> AsyncIterator[Postgres]:
    async with opened_postgres(session_database_url) as opened:
        await opened.run(ENSURE_TENANT_SQL, [TENANT, "A school"])
        yield opened


@dataclass
class Life:
    """One conversation, and the processes that meet in it."""

    session: str
    processes: list[PostgresConversations]

    async def take(self, call: Call, *, waits: bool) -> Turn:
        """The call's turn; a short one for whoever will not be there to end it."""
        dies = call.ending in ("crash", "come_too_late")
        return await self.processes[call.process].take_turn(
            TENANT,
            self.session,
            wait_seconds=30.0 if waits else 0.0,
            lease_seconds=SHORT_SECONDS if dies else LONG_SECONDS,
        )

    async def run(self, call: Call) -> None:
        """The call from its beginning to its end."""
        await asyncio.sleep(call.begins_after_ms / 1000)
        try:
            turn = await self.take(call, waits=call.waits)
        except ConversationBusy:
            assert not call.waits
            return
        await asyncio.sleep(call.lasts_ms / 1000)
        await self.end(call, turn)

    async def end(self, call: Call, turn: Turn) -> None:
        """End the turn as drawn."""
        own = self.processes[call.process]
        if call.ending == "crash":
            return
        if call.ending == "give_back":
            await own.give_back(TENANT, turn)
            return
        if call.ending == "come_too_late":
            await asyncio.sleep(SHORT_SECONDS)
        try:
            call.last_seq, call.turn = await own.append(TENANT, turn, call.id, call.messages), turn
        except ConversationBusy:
            # only who was late can have lost the turn
            assert call.ending == "come_too_late"
            return
        await self.go_on(call, turn)

    async def go_on(self, call: Call, turn: Turn) -> None:
        """What may come after an append."""
        elsewhere = self.processes[(call.process + 1) % PROCESSES]
        if call.ending == "repeat":
            assert await elsewhere.append(TENANT, turn, call.id, call.messages) == call.last_seq
        if call.ending == "repeat_in_a_new_turn":
            again = await self.take(call, waits=True)
            assert await elsewhere.append(TENANT, again, call.id, call.messages) == call.last_seq
        if call.ending == "summarise":
            await elsewhere.summarise(TENANT, self.session, f"to {call.last_seq}", call.last_seq)


async def test_a_conversation_is_gapless_and_in_order(
    postgres: Postgres, example: Callable[[], None]
) -> None:
    """
    **功能: assay, 属性 32: 会话顺序**
    **验证: 需求 O4**

    For every set of concurrent turns, of several processes, some of which wait, refuse, crash, come back
    after their lease or append repeatedly: numbers have no gap, a call's messages stand together and once,
    each turn knew exactly what stands before its messages, and of a turn that was refused or lost there is
    no message.
    """
    cases = drawn(CALLS)
    for begin in range(0, len(cases), AT_ONCE):
        at_once = cases[begin : begin + AT_ONCE]
        await asyncio.gather(*(prove(postgres, calls) for calls in at_once))
        for _ in at_once:
            example()


async def prove(postgres: Postgres, drawn_calls: Sequence[Call]) -> None:
    """The property for one set of turns."""
    # a case that is drawn twice is another one each time
    calls = [replace(each, id=uuid4()) for each in drawn_calls]
    life = Life(uuid4().hex, [PostgresConversations(postgres) for _ in range(PROCESSES)])
    await asyncio.gather(*(life.run(call) for call in calls))

    rows = await postgres.rows(
        "SELECT seq, call_id, message FROM conversation_messages WHERE session_id = %s ORDER BY seq",
        [life.session],
    )
    stored = [row["message"] for row in rows]
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    for call in calls:
        own = [(row["seq"], row["message"]) for row in rows if row["call_id"] == call.id]
        assert_whole(call, own, stored)
    # nothing is stuck: the next turn comes, and knows everything
    last = await life.processes[0].take_turn(TENANT, life.session, wait_seconds=30, lease_seconds=1)
    assert last.last_seq == len(stored)
    assert list(last.messages) == stored[len(stored) - len(last.messages) :]
    assert last.summary == (f"to {len(stored) - len(last.messages)}" if last.summary else "")


def assert_whole(call: Call, own: Sequence[tuple[int, Any]], stored: Sequence[Any]) -> None:
    """The call's messages are what became of it."""
    if call.turn is None:
        assert own == []
        return
    first = call.last_seq - call.size + 1
    assert [seq for seq, _ in own] == list(range(first, call.last_seq + 1))
    assert [message for _, message in own] == call.messages
    assert call.turn.last_seq == first - 1
    known = list(call.turn.messages)
    assert known == stored[first - 1 - len(known) : first - 1]
