"""Conversations over HTTP: listed, read and forgotten by their tenant alone."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import httpx
import pytest

from db.postgres.conversations import PostgresConversations
from db.postgres.tenants import ENSURE_KEY_SQL, ENSURE_TENANT_SQL, key_hash
from domain.completion import CompletionReply, CompletionRequest, OnChunk
from domain.errors import ModelUnavailable
from domain.gateway import Turn
from runtime.gateway import door
from runtime.resources import Resources
from tests.api.chatting import HELLO, TalkingModel, a_reply, chat_server, state_price
from tests.db.stage import until

TURNS = 24

TALK = [
    {"role": "user", "content": "How does TCP open a connection?"},
    {"role": "assistant", "content": "With three segments."},
    {"role": "user", "content": "为什么？"},
    {"role": "assistant", "content": "Both sides announce a number."},
]


class School:
    """A tenant of this test's own, with a client for each scope."""

    def __init__(self, resources: Resources, api_url: str, ends: AsyncExitStack) -> None:
        self.id = f"school-{secrets.token_hex(6)}"
        self.conversations = PostgresConversations(resources.postgres)
        self._postgres = resources.postgres
        self._url = api_url
        self._ends = ends

    async def client(self, *scopes: str) -> httpx.AsyncClient:
        """A client whose key has these scopes."""
        secret = f"assay_test_{secrets.token_hex(12)}"
        await self._postgres.run(ENSURE_TENANT_SQL, [self.id, self.id])
        await self._postgres.run(
            ENSURE_KEY_SQL, [self.id, "test", secret[:12], key_hash(secret), list(scopes)]
        )
        headers = {"Authorization": f"Bearer {secret}"}
        return await self._ends.enter_async_context(httpx.AsyncClient(base_url=self._url, headers=headers))

    async def turn(self, session: str) -> Turn:
        """The next turn of a conversation."""
        return await self.conversations.take_turn(self.id, session, wait_seconds=0, lease_seconds=60)

    async def talk(self, session: str) -> None:
        """A conversation."""
        await self.conversations.append(self.id, await self.turn(session), uuid4(), TALK)


@pytest.fixture
async def ends() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def school(session_resources: Resources, api_url: str, ends: AsyncExitStack) -> School:
    return School(session_resources, api_url, ends)


@pytest.fixture
def stranger(session_resources: Resources, api_url: str, ends: AsyncExitStack) -> School:
    return School(session_resources, api_url, ends)


async def test_a_conversation_is_read_with_its_messages_in_order(school: School) -> None:
    client = await school.client("read")
    await school.talk("course-7:li")
    await school.conversations.summarise(school.id, "course-7:li", "They spoke of TCP.", 2)

    read = await client.get("/v1/conversations/course-7:li")
    first = await client.get("/v1/conversations/course-7:li/messages", params={"page_size": 3})
    second = await client.get("/v1/conversations/course-7:li/messages", params={"page_size": 3, "page": 2})

    assert read.status_code == 200
    known = {key: value for key, value in read.json().items() if not key.endswith("_at")}
    assert known == {
        "session": "course-7:li",
        "messages": 4,
        "summary": "They spoke of TCP.",
        "summarised": 2,
        "busy": False,
    }
    assert first.json()["total"] == second.json()["total"] == 4
    items = first.json()["items"] + second.json()["items"]
    assert items == [{"seq": seq, "message": message} for seq, message in enumerate(TALK, start=1)]


async def test_conversations_are_listed_with_the_last_changed_first(school: School) -> None:
    client = await school.client("model")
    for session in ("one", "two"):
        await school.talk(session)
    await school.talk("one")
    await school.turn("one")

    listed = (await client.get("/v1/conversations", params={"page_size": 2})).json()

    assert [(each["session"], each["messages"], each["busy"]) for each in listed["items"]] == [
        ("one", 8, True),
        ("two", 4, False),
    ]
    assert listed["total"] == 2


async def test_a_conversation_is_forgotten(school: School) -> None:
    client = await school.client("model")
    await school.talk("s")

    assert (await client.delete("/v1/conversations/s")).status_code == 204

    assert (await client.get("/v1/conversations/s")).json()["code"] == "not_found"
    assert (await client.get("/v1/conversations/s/messages")).status_code == 404
    assert (await client.delete("/v1/conversations/s")).status_code == 404
    assert await school.conversations.messages(school.id, "s", after=0, limit=10) == []


async def test_tenants_never_see_each_others_conversations(school: School, stranger: School) -> None:
    await school.client("read")
    other = await stranger.client("model", "read", "admin")
    await school.talk("s")

    answers = [
        await other.get("/v1/conversations/s"),
        await other.get("/v1/conversations/s/messages"),
        await other.delete("/v1/conversations/s"),
    ]

    assert [each.status_code for each in answers] == [404] * 3
    assert (await other.get("/v1/conversations")).json()["total"] == 0
    assert len(await school.conversations.messages(school.id, "s", after=0, limit=10)) == 4


async def test_reading_needs_a_scope_and_forgetting_another_one(school: School) -> None:
    reader, submitter = await school.client("read"), await school.client("submit")
    await school.talk("s")

    assert (await submitter.get("/v1/conversations")).status_code == 403
    assert (await submitter.get("/v1/conversations/s/messages")).status_code == 403
    assert (await reader.delete("/v1/conversations/s")).status_code == 403
    assert (await reader.get("/v1/conversations/s")).status_code == 200


@pytest.mark.parametrize("session", ["a" * 101, "%2E%2E", "a%20b", "-a", "%E7%BD%91"])
async def test_a_name_that_cannot_be_one_is_refused(school: School, session: str) -> None:
    client = await school.client("model")

    for answer in (
        await client.get(f"/v1/conversations/{session}"),
        await client.get(f"/v1/conversations/{session}/messages"),
        await client.delete(f"/v1/conversations/{session}"),
    ):
        assert (answer.status_code, answer.json()["field"]) == (422, "session")


# --- the whole way: over HTTP, through the door, to a model --------------------------------------------


class Classroom:
    """The API over the real door and a model that remembers what it was told."""

    def __init__(self, client: httpx.AsyncClient, resources: Resources) -> None:
        self.client = client
        self.resources = resources
        self.told: list[list[Mapping[str, Any]]] = []
        self.failing = False

    async def answer(self, request: CompletionRequest, _: OnChunk | None) -> CompletionReply:
        """The number of messages that were said."""
        if self.failing:
            raise ModelUnavailable("The model is away.")
        assert request.chat is not None
        self.told.append(list(request.chat.messages))
        return a_reply(f"You said {len(request.chat.messages)}.")

    async def say(self, text: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        """A turn."""
        body = HELLO | {"messages": [{"role": "user", "content": text}], "session": "s"} | fields
        return await self.client.post("/v1/chat/completions", json=body, headers=headers)

    async def messages(self) -> list[dict[str, Any]]:
        """Everything that was said, read page by page."""
        items: list[dict[str, Any]] = []
        while True:
            query = {"page": len(items) // 100 + 1, "page_size": 100}
            page = (await self.client.get("/v1/conversations/s/messages", params=query)).json()
            items += page["items"]
            if len(items) >= page["total"]:
                return items


@pytest.fixture
async def classroom(resources: Resources) -> AsyncIterator[Classroom]:
    await state_price(resources)
    model = TalkingModel()
    gateway = door(resources, model)
    async with chat_server(resources, gateway) as client:
        made = Classroom(client, resources)
        model.act = made.answer
        yield made
    await gateway.close()


async def test_a_chat_with_a_session_goes_on_where_it_was(classroom: Classroom) -> None:
    key = {"Idempotency-Key": "the-first"}
    first = await classroom.say("One?", key)
    classroom.failing = True
    assert (await classroom.say("Lost?", retry_budget_s=0)).status_code == 503
    classroom.failing = False
    second = await classroom.say("Two?", stream=True)
    again = await classroom.say("One?", key)

    assert second.status_code == 200
    # the same call, although the conversation has gone on: answered from the journal, and appended once
    assert again.json()["choices"] == first.json()["choices"]
    one = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "You said 1."}]
    two = [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "You said 3."}]
    assert classroom.told == [one[:1], [*one, two[0]]]
    assert [each["message"] for each in await classroom.messages()] == [*one, *two]


async def test_turns_at_once_come_one_after_another(classroom: Classroom) -> None:
    """O4: no gap, no mixture, each knows all that came before it."""
    answers = await asyncio.gather(*(classroom.say(f"{number}") for number in range(TURNS)))

    assert {each.status_code for each in answers} == {200}
    items = await classroom.messages()
    assert [each["seq"] for each in items] == list(range(1, 2 * TURNS + 1))
    asked = [each["message"] for each in items[::2]]
    assert sorted(int(each["content"]) for each in asked) == list(range(TURNS))
    assert {each["role"] for each in asked} == {"user"}
    assert {each["message"]["role"] for each in items[1::2]} == {"assistant"}
    # the calls that summarise the older ones meanwhile say their prompt
    said = [each[-1] for each in classroom.told if "<conversation mark=" not in each[-1]["content"]]
    assert said == asked

    async def summarised() -> bool:
        return bool((await classroom.client.get("/v1/conversations/s")).json()["summarised"])

    await until(summarised)


async def test_a_busy_conversation_answers_409_to_a_turn_that_does_not_wait(classroom: Classroom) -> None:
    conversations = PostgresConversations(classroom.resources.postgres)
    turn = await conversations.take_turn("local", "s", wait_seconds=0, lease_seconds=60)

    refused = await classroom.say("Now?", session_when_busy="refuse")
    in_vain = await classroom.say("Now?", max_wait_timeout_s=0.05)

    for answer in (refused, in_vain):
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conversation_busy")
        assert answer.headers["x-should-retry"] == "false"
        assert "try again" not in answer.json()["error"]["message"]
        assert int(answer.headers["Retry-After"]) >= 1
    await conversations.give_back("local", turn)
    assert (await classroom.say("Now?", session_when_busy="refuse")).status_code == 200
