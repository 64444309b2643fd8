"""Conversations in Postgres: one turn at a time, gapless, each call once."""

import asyncio
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from db.postgres.conversations import MOST_WAITING, PostgresConversations
from db.postgres.pool import Postgres
from db.postgres.tenants import ENSURE_TENANT_SQL
from domain.errors import ConversationBusy, NotFound, PostgresUnavailable
from domain.gateway import Turn

TURNS = 50


@pytest.fixture
async def tenant(postgres: Postgres, fresh: str) -> str:
    """A tenant of this test's own."""
    await postgres.run(ENSURE_TENANT_SQL, [fresh, "A school"])
    return fresh


@pytest.fixture
def conversations(postgres: Postgres) -> PostgresConversations:
    """Those of one process."""
    return PostgresConversations(postgres)


def said(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


async def taken(
    conversations: PostgresConversations, tenant: str, session: str = "s", **options: Any
) -> Turn:
    known = {"wait_seconds": 0.0, "lease_seconds": 60.0} | options
    return await conversations.take_turn(tenant, session, **known)


async def texts(conversations: PostgresConversations, tenant: str, session: str = "s") -> list[str]:
    return [each["content"] for each in await conversations.messages(tenant, session, after=0, limit=1000)]


async def numbers(postgres: Postgres, tenant: str) -> list[tuple[int, UUID]]:
    rows = await postgres.rows(
        "SELECT seq, call_id FROM conversation_messages WHERE tenant_id = %s ORDER BY seq", [tenant]
    )
    return [(row["seq"], row["call_id"]) for row in rows]


async def test_a_turn_reads_what_was_said_and_appends_what_follows(
    conversations: PostgresConversations, tenant: str
) -> None:
    first = await taken(conversations, tenant)
    assert (first.last_seq, first.summary, first.messages) == (0, "", ())
    assert await conversations.append(tenant, first, uuid4(), [said("one"), said("two")]) == 2

    second = await taken(conversations, tenant)

    assert second.last_seq == 2
    assert second.messages == (said("one"), said("two"))
    assert await conversations.append(tenant, second, uuid4(), [said("three")]) == 3
    assert await texts(conversations, tenant) == ["one", "two", "three"]


async def test_a_second_turn_is_refused_until_the_first_one_ends(
    conversations: PostgresConversations, tenant: str
) -> None:
    first = await taken(conversations, tenant)
    with pytest.raises(ConversationBusy):
        await taken(conversations, tenant)
    with pytest.raises(ConversationBusy):
        await taken(conversations, tenant, wait_seconds=0.05)

    await conversations.give_back(tenant, first)

    assert (await taken(conversations, tenant)).last_seq == 0
    assert await texts(conversations, tenant) == []


async def test_a_waiting_turn_comes_when_the_one_before_it_ends_in_whatever_process(
    conversations: PostgresConversations, postgres: Postgres, tenant: str
) -> None:
    elsewhere = PostgresConversations(postgres)
    for holder in (conversations, elsewhere):
        turn = await taken(holder, tenant)
        waiting = asyncio.create_task(taken(conversations, tenant, wait_seconds=30.0))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await holder.append(tenant, turn, uuid4(), [said("earlier")])
        next_turn = await waiting
        assert next_turn.messages[-1] == said("earlier")
        await conversations.give_back(tenant, next_turn)


async def test_turns_of_one_process_come_in_the_order_in_which_they_were_asked_for(
    conversations: PostgresConversations, tenant: str
) -> None:
    turn = await taken(conversations, tenant)

    async def take(name: str) -> None:
        own = await taken(conversations, tenant, wait_seconds=30.0)
        await conversations.append(tenant, own, uuid4(), [said(name)])

    names = [f"{number}" for number in range(8)]
    waiting = [asyncio.create_task(take(name)) for name in names]
    await asyncio.sleep(0.05)
    await conversations.give_back(tenant, turn)
    await asyncio.gather(*waiting)

    assert await texts(conversations, tenant) == names


async def test_who_waits_holds_no_connection(
    conversations: PostgresConversations, postgres: Postgres, tenant: str
) -> None:
    turn = await taken(conversations, tenant)
    waiting = [asyncio.create_task(taken(conversations, tenant, wait_seconds=30.0)) for _ in range(50)]
    await asyncio.sleep(0.1)

    stats = postgres.stats()

    assert stats["pool_size"] - stats["pool_available"] <= 1
    assert stats["requests_waiting"] == 0
    for each in waiting:
        each.cancel()
    await asyncio.wait(waiting)
    await conversations.give_back(tenant, turn)
    await taken(conversations, tenant)


async def test_only_so_many_turns_of_a_conversation_wait(
    conversations: PostgresConversations, tenant: str
) -> None:
    await taken(conversations, tenant)
    waiting = [
        asyncio.create_task(taken(conversations, tenant, wait_seconds=30.0)) for _ in range(MOST_WAITING)
    ]
    await asyncio.sleep(0.05)

    with pytest.raises(ConversationBusy, match=f"{MOST_WAITING} turns wait"):
        await taken(conversations, tenant, wait_seconds=30.0)

    for each in waiting:
        each.cancel()
    await asyncio.wait(waiting)


async def test_concurrent_turns_leave_no_gap_and_mix_no_call(postgres: Postgres, tenant: str) -> None:
    """O4, with several processes: fifty at once."""
    processes = [PostgresConversations(postgres) for _ in range(5)]
    calls = [uuid4() for _ in range(TURNS)]

    async def call(number: int) -> None:
        own = processes[number % len(processes)]
        turn = await taken(own, tenant, wait_seconds=60.0)
        await asyncio.sleep(0.001)
        messages = [said(f"{number}/{turn.last_seq}/{place}") for place in range(1 + number % 3)]
        await own.append(tenant, turn, calls[number], messages)

    await asyncio.gather(*(call(number) for number in range(TURNS)))

    written = await numbers(postgres, tenant)
    in_all = sum(1 + number % 3 for number in range(TURNS))
    assert [seq for seq, _ in written] == list(range(1, in_all + 1))
    # a call's messages follow one another, and it knew all that stood before them
    for number, call_id in enumerate(calls):
        own = [seq for seq, known in written if known == call_id]
        assert own == list(range(own[0], own[0] + 1 + number % 3))
    for seq, text in enumerate(await texts(processes[0], tenant), start=1):
        _, before, place = map(int, text.split("/"))
        assert seq == before + place + 1


async def test_a_turn_that_nobody_gives_back_ends_with_its_lease(postgres: Postgres, tenant: str) -> None:
    lost: list[str] = []
    conversations = PostgresConversations(postgres, on_conflict=lambda: lost.append("one"))
    zombie = await taken(conversations, tenant, lease_seconds=0.05)

    turn = await taken(conversations, tenant, wait_seconds=30.0)

    # while the other one is under way, and after it
    with pytest.raises(ConversationBusy, match="Idempotency-Key"):
        await conversations.append(tenant, zombie, uuid4(), [said("too late")])
    await conversations.append(tenant, turn, uuid4(), [said("in time")])
    with pytest.raises(ConversationBusy):
        await conversations.append(tenant, zombie, uuid4(), [said("too late")])
    assert await texts(conversations, tenant) == ["in time"]
    assert lost == ["one", "one"]


async def test_a_late_turn_that_nobody_followed_still_counts(
    conversations: PostgresConversations, tenant: str
) -> None:
    turn = await taken(conversations, tenant, lease_seconds=0.001)
    await asyncio.sleep(0.01)

    assert await conversations.append(tenant, turn, uuid4(), [said("late")]) == 1


async def test_a_zombie_cannot_end_the_turn_of_another_one(
    conversations: PostgresConversations, tenant: str
) -> None:
    zombie = await taken(conversations, tenant, lease_seconds=0.001)
    turn = await taken(conversations, tenant, wait_seconds=30.0)

    await conversations.give_back(tenant, zombie)
    assert not await conversations.renew(tenant, zombie, lease_seconds=60)

    with pytest.raises(ConversationBusy):
        await taken(conversations, tenant)
    assert await conversations.append(tenant, turn, uuid4(), [said("mine")]) == 1


async def test_a_renewed_turn_outlives_its_lease(conversations: PostgresConversations, tenant: str) -> None:
    turn = await taken(conversations, tenant, lease_seconds=1)
    assert await conversations.renew(tenant, turn, lease_seconds=60)
    await asyncio.sleep(1.1)

    with pytest.raises(ConversationBusy):
        await taken(conversations, tenant)


async def test_the_same_call_appends_once_whatever_its_token(
    conversations: PostgresConversations, tenant: str
) -> None:
    call, turn = uuid4(), await taken(conversations, tenant)
    assert await conversations.append(tenant, turn, call, [said("once"), said("only")]) == 2
    other = await taken(conversations, tenant)
    await conversations.append(tenant, other, uuid4(), [said("later")])

    assert await conversations.append(tenant, turn, call, [said("once"), said("only")]) == 2
    repeated = await taken(conversations, tenant)
    assert await conversations.append(tenant, repeated, call, [said("once"), said("only")]) == 2

    assert await texts(conversations, tenant) == ["once", "only", "later"]
    # and its turn has ended
    assert (await taken(conversations, tenant)).last_seq == 3


async def test_the_same_call_in_two_turns_at_once_appends_once(postgres: Postgres, tenant: str) -> None:
    conversations, call = PostgresConversations(postgres), uuid4()
    stale = await taken(conversations, tenant, lease_seconds=0.001)
    turn = await taken(conversations, tenant, wait_seconds=30.0)

    outcomes = await asyncio.gather(
        *(conversations.append(tenant, each, call, [said("x")]) for each in (stale, turn)),
        return_exceptions=True,
    )

    assert outcomes[1] == 1
    assert outcomes[0] == 1 or isinstance(outcomes[0], ConversationBusy)
    assert await texts(conversations, tenant) == ["x"]


async def test_an_append_is_whole_or_not_at_all(
    conversations: PostgresConversations, postgres: Postgres, tenant: str
) -> None:
    turn = await taken(conversations, tenant)
    await conversations.append(tenant, turn, uuid4(), [said("before")])
    turn = await taken(conversations, tenant)
    # a number that is taken: the second of the three cannot be written
    await postgres.run(
        "INSERT INTO conversation_messages (tenant_id, session_id, seq, message, call_id)"
        " VALUES (%s, 's', 3, '{}', %s)",
        [tenant, uuid4()],
    )

    with pytest.raises(Exception, match="conversation_messages_pkey"):
        await conversations.append(tenant, turn, uuid4(), [said("a"), said("b"), said("c")])

    assert [seq for seq, _ in await numbers(postgres, tenant)] == [1, 3]
    read = await conversations.read(tenant, "s")
    assert (read.last_seq, read.busy) == (1, True)


async def test_what_postgres_cannot_hold_is_replaced(
    conversations: PostgresConversations, tenant: str
) -> None:
    turn = await taken(conversations, tenant)
    odd = {"role": "user", "content": [{"type": "text", "text": "a\x00b\ud800c"}], "n": float("nan")}

    await conversations.append(tenant, turn, uuid4(), [odd])
    assert await conversations.summarise(tenant, "s", "a\x00b", 1)

    (kept,) = await conversations.messages(tenant, "s", after=0, limit=10)
    assert kept == {"role": "user", "content": [{"type": "text", "text": "a�b�c"}], "n": None}
    assert (await conversations.read(tenant, "s")).summary == "a�b"


async def test_a_summary_moves_forward_over_committed_messages_alone(
    conversations: PostgresConversations, tenant: str
) -> None:
    turn = await taken(conversations, tenant)
    await conversations.append(tenant, turn, uuid4(), [said(f"{number}") for number in range(1, 6)])

    assert not await conversations.summarise(tenant, "s", "of what is not there", 6)
    assert await conversations.summarise(tenant, "s", "one to three", 3)
    assert not await conversations.summarise(tenant, "s", "again", 3)
    assert not await conversations.summarise(tenant, "s", "back", 2)
    assert not await conversations.summarise(tenant, "another", "of nothing", 1)

    turn = await taken(conversations, tenant)
    assert turn.summary == "one to three"
    assert turn.messages == (said("4"), said("5"))


async def test_a_turn_reads_a_bounded_part_of_a_long_conversation(
    conversations: PostgresConversations, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = await taken(conversations, tenant)
    await conversations.append(tenant, turn, uuid4(), [said(f"{number}" * 100) for number in range(9)])

    monkeypatch.setattr("db.postgres.conversations.MOST_MESSAGES", 5)
    turn = await taken(conversations, tenant)
    assert [each["content"][0] for each in turn.messages] == ["4", "5", "6", "7", "8"]
    await conversations.give_back(tenant, turn)
    monkeypatch.setattr("db.postgres.conversations.MOST_BYTES", 300)
    turn = await taken(conversations, tenant)
    assert [each["content"][0] for each in turn.messages] == ["7", "8"]
    assert turn.last_seq == 9


async def test_conversations_are_listed_and_forgotten_for_their_tenant_alone(
    conversations: PostgresConversations, postgres: Postgres, tenant: str
) -> None:
    other = f"{tenant}-other"
    await postgres.run(ENSURE_TENANT_SQL, [other, "Another school"])
    for owner in (tenant, other):
        turn = await taken(conversations, owner)
        await conversations.append(owner, turn, uuid4(), [said(owner)])
    await taken(conversations, tenant, "busy")

    listed, total = await conversations.list_of_tenant(tenant, 1, 1)
    assert ([each.session_id for each in listed], total) == (["busy"], 2)
    assert listed[0].busy
    assert await conversations.list_of_tenant(tenant, 3, 1) == ([], 2)

    await conversations.delete(tenant, "s")
    with pytest.raises(NotFound):
        await conversations.read(tenant, "s")
    with pytest.raises(NotFound):
        await conversations.delete(tenant, "s")
    assert await texts(conversations, tenant) == []
    assert await texts(conversations, other) == [other]


async def test_a_turn_under_way_is_lost_when_its_conversation_is_forgotten(
    conversations: PostgresConversations, tenant: str
) -> None:
    turn = await taken(conversations, tenant)
    await conversations.delete(tenant, "s")

    with pytest.raises(ConversationBusy, match="deleted"):
        await conversations.append(tenant, turn, uuid4(), [said("gone")])
    await taken(conversations, tenant)
    with pytest.raises(ConversationBusy):
        await conversations.append(tenant, turn, uuid4(), [said("gone")])


async def test_a_turn_is_given_back_without_a_word_while_postgres_is_away(
    conversations: PostgresConversations, tenant: str, own_postgres: Postgres
) -> None:
    turn = await taken(conversations, tenant)
    await own_postgres.pool.close()
    away = PostgresConversations(own_postgres)

    await away.give_back(tenant, turn)

    with pytest.raises(PostgresUnavailable):
        await away.append(tenant, replace(turn), uuid4(), [said("x")])
