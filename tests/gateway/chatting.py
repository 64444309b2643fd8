"""Chats for tests, and one who listens to them."""

import asyncio
import json

from domain.completion import Chat, CompletionReply, CompletionRequest
from domain.identity import ClientStep

ASKED = ({"role": "system", "content": "Be short."}, {"role": "user", "content": "Is it warm in Rome now?"})
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def chat(model: str, /, *messages: dict, max_tokens: int = 50, **parameters) -> CompletionRequest:
    return CompletionRequest(
        ClientStep("1f0e"), 1, model, max_tokens=max_tokens, chat=Chat(messages or ASKED, parameters)
    )


def choice(reply: CompletionReply) -> dict:
    """The only choice of the reply."""
    (only,) = json.loads(reply.choices)
    return only


class Listener:
    """Hears chunks; slowly if told so."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.chunks: list[list[dict]] = []
        self._seconds = seconds

    async def __call__(self, choices) -> None:
        self.chunks.append(list(choices))
        await asyncio.sleep(self._seconds)

    @property
    def text(self) -> str:
        deltas = (choice["delta"] for choices in self.chunks for choice in choices)
        return "".join(delta.get("content") or "" for delta in deltas)

    @property
    def finished(self) -> list[str]:
        return [
            reason for choices in self.chunks for each in choices if (reason := each.get("finish_reason"))
        ]
