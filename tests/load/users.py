"""Users of the load: the official client, used as people's programs use it."""

import asyncio
import math
import random
import sys
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import openai

from tests.load.field import MODEL, Field

_QUESTION = "Why does the sky look blue at noon? "
_TOKENS = 8


@dataclass
class Answers:
    """What the users saw."""

    replies: int = 0
    #: of which under a key of idempotency that had been answered before
    repeated: int = 0
    left: int = 0
    refused: list[str] = field(default_factory=list)


async def press(
    stage: Field,
    *,
    users: int,
    spawned_per_second: float,
    turns: int = sys.maxsize,
    seconds: float = math.inf,
    seed: int = 11,
) -> Answers:
    """So many users, so many more each second, each with so many turns or for so long."""
    answers, ends = Answers(), asyncio.get_running_loop().time() + seconds
    async with httpx.AsyncClient(timeout=30) as wire, asyncio.TaskGroup() as group:
        for number in range(users):
            client = openai.AsyncOpenAI(
                base_url=f"{stage.url}/v1", api_key=stage.keys[number % len(stage.keys)], http_client=wire
            )
            chance = random.Random(f"{seed}/{number}")  # noqa: S311  # a load to be repeated
            group.create_task(_User(client, chance, answers).use(turns, ends))
            await asyncio.sleep(1 / spawned_per_second)
    return answers


@dataclass(frozen=True)
class _User:
    client: openai.AsyncOpenAI
    chance: random.Random
    answers: Answers

    async def use(self, turns: int, ends: float) -> None:
        """Call in turns of all kinds, the first of them plain."""
        kinds, kind = (self._plain, self._stream, self._twice, self._leave), self._plain
        for _ in range(turns):
            try:
                await kind()
            except openai.APIStatusError as error:
                # the upstream refused more often than the client tries
                self.answers.refused.append(f"{error.status_code} {error.code}")
            if asyncio.get_running_loop().time() >= ends:
                return
            (kind,) = self.chance.choices(kinds, (6, 3, 2, 1))

    def _asked(self) -> dict[str, object]:
        # no two calls are equal: a client's retry would get the reply that another one left behind (O10)
        content = f"{self.chance.getrandbits(64):016x} " + _QUESTION * self.chance.randint(1, 20)
        return {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": _TOKENS}

    async def _plain(self) -> None:
        reply = await self.client.chat.completions.create(**self._asked())
        assert reply.choices[0].message.content.startswith("Simulated reply")
        self.answers.replies += 1

    async def _stream(self) -> None:
        stream = await self.client.chat.completions.create(**self._asked(), stream=True)
        ends = [chunk.choices[0].finish_reason async for chunk in stream if chunk.choices]
        assert ends[-1] in {"stop", "length"}
        self.answers.replies += 1

    async def _twice(self) -> None:
        """The same call under one key of idempotency: one call, one reply."""
        asked = self._asked()
        key = f"key-{self.chance.getrandbits(64):x}"
        replies = [
            await self.client.chat.completions.create(**asked, extra_headers={"Idempotency-Key": key})
            for _ in range(2)
        ]
        assert replies[0].choices == replies[1].choices
        self.answers.replies += 2
        self.answers.repeated += 1

    async def _leave(self) -> None:
        """Go away at any moment."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.chance.uniform(0.001, 0.05)):
                await self.client.chat.completions.create(**self._asked())
                self.answers.replies += 1
                return
        self.answers.left += 1
