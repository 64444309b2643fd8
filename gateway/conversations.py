"""Conversations on a call's way: the earlier messages before it, its own appended after it (O4).

The pipeline calls `load` before the route is chosen, prices and sends `said(request, loaded)`, and hashes the
request as its caller sent it. Then it calls `append` once the reply is settled, replayed ones too, and in any
case `give_back`.
"""

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from string import Template
from time import monotonic
from typing import Any, Protocol

import structlog

from domain.completion import Chat, CompletionReply, CompletionRequest, Payer
from domain.errors import AssayError
from domain.gateway import Conversations, Turn, check_session_id
from gateway.context import Appended, Context, ConversationLoaded

SUMMARY_TEMPLATE = "earlier-conversation@1"
#: a turn whose process is gone ends after so long; a living one renews its lease
LEASE_SECONDS = 30.0
#: no call lasts longer, whatever its timeouts and candidates are
MOST_TURN_SECONDS = 4 * 3600.0

_INSTRUCTING = ("system", "developer")
#: what a reply's message may be said again with; other parts are refused as input by one provider or another
_REPLY_PARTS = ("content", "tool_calls", "refusal")

log = structlog.get_logger("assay.gateway")

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Window:
    """How much of the earlier conversation is said to a model, the summary aside."""

    messages: int = 40
    bytes: int = 64 * 1024

    def holds(self, messages: Sequence[Message]) -> bool:
        """Whether all of them fit."""
        return self._reach(messages) == 0

    def begin(self, earlier: Sequence[Message], *, mid_call: bool = False) -> int:
        """The place of the first message that is said: all from there fit, and no tool's result is cut off.

        Rather a user's message than another one: some providers refuse a chat that begins otherwise. With
        `mid_call` the results of the last message's tools are still to come, so that it is said however long.
        """
        reach = self._reach(earlier)
        starts = [place for place, each in enumerate(earlier) if each.get("role") != "tool"]
        fitting = [place for place in starts if place >= reach]
        of_users = [place for place in fitting if earlier[place].get("role") == "user"]
        if found := of_users or fitting or (starts[-1:] if mid_call else []):
            return found[0]
        return len(earlier)

    def _reach(self, messages: Sequence[Message]) -> int:
        place, left = len(messages), self.bytes
        while place > max(0, len(messages) - self.messages):
            left -= _size(messages[place - 1])
            if left < 0:
                break
            place -= 1
        return place


DEFAULT_WINDOW = Window()


class Summariser(Protocol):
    """Makes room: summarises what has left the window, in the background."""

    def want(self, request: CompletionRequest, payer: Payer) -> None:
        """Begin with a summary of the request's conversation, unless there is one on its way."""
        ...

    async def close(self) -> None:
        """End what is under way."""
        ...


def said(request: CompletionRequest, loaded: ConversationLoaded | None) -> CompletionRequest:
    """The request as the upstream gets it and as it is priced: with everything that was loaded.

    Not what `request_hash` is taken from: a call is told from others by what its caller sent, and a repeated
    call finds another conversation than it did at first.
    """
    if request.chat is None or loaded is None or loaded.turn is None:
        return request
    return replace(request, chat=replace(request.chat, messages=loaded.messages))


class ConversationStep:
    """The steps `load_conversation` and `append_conversation`."""

    def __init__(
        self,
        conversations: Conversations,
        window: Window = DEFAULT_WINDOW,
        summariser: Summariser | None = None,
        *,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._conversations = conversations
        self._window = window
        self._summariser = summariser
        self._lease_seconds = lease_seconds
        self._held: dict[str, _HeldTurn] = {}

    async def load(self, context: Context) -> ConversationLoaded:
        """Takes the session's turn, and answers all that is said to the model; nothing without a session.

        Waits for the turn under way until the call's patience ends, counted from its arrival, or refuses at
        once where the chat says so. Raises `ConversationBusy`, and `InvalidInput` for what is no session id.
        The turn is held until `append` or `give_back`.
        """
        chat = context.request.chat
        if chat is None or not chat.session_id:
            return ConversationLoaded()
        tenant_id, lease_seconds = context.payer.tenant_id, self._lease_seconds
        turn = await self._conversations.take_turn(
            tenant_id,
            check_session_id(chat.session_id),
            wait_seconds=_patience(context, chat),
            lease_seconds=lease_seconds,
        )
        self._held[turn.token] = _HeldTurn(self._conversations, tenant_id, turn, lease_seconds)
        return ConversationLoaded(turn, self._said(chat, turn))

    def _said(self, chat: Chat, turn: Turn) -> tuple[Message, ...]:
        instructions = [each for each in chat.messages if each.get("role") in _INSTRUCTING]
        new = _new_messages(chat)
        begin = self._window.begin(turn.messages, mid_call=bool(new) and new[0].get("role") == "tool")
        if begin:
            log.info("conversation_cut", left_out=begin)
        summary = [_summary_message(turn.summary)] if turn.summary else []
        return (*instructions, *summary, *turn.messages[begin:], *new)

    async def append(self, context: Context) -> Appended:
        """Appends what is new and the reply, once a call, and ends the turn; raises `ConversationBusy`."""
        turn, chat = _turn(context), context.request.chat
        if turn is None or chat is None:
            return Appended()
        messages = [*_new_messages(chat), reply_message(_reply(context))]
        last_seq = await self._conversations.append(context.payer.tenant_id, turn, context.key.id, messages)
        await self._let_go(turn)
        if self._summariser is not None and not self._window.holds([*turn.messages, *messages]):
            self._summariser.want(context.request, context.payer)
        return Appended(last_seq)

    async def give_back(self, context: Context) -> None:
        """Ends the turn of a call that failed, without a message; never raises, and may follow `append`."""
        turn = _turn(context)
        if turn is not None and await self._let_go(turn):
            await self._conversations.give_back(context.payer.tenant_id, turn)

    async def _let_go(self, turn: Turn) -> bool:
        """Renew the turn no more; false if it ended before."""
        held = self._held.pop(turn.token, None)
        if held is not None:
            await held.end()
        return held is not None

    async def close(self) -> None:
        """End the summaries under way, and hold no turn any more."""
        if self._summariser is not None:
            await self._summariser.close()
        for held in list(self._held.values()):
            await held.end()
        self._held.clear()


class _HeldTurn:
    """A turn whose lease is renewed, so that it is short for a process that dies."""

    def __init__(
        self, conversations: Conversations, tenant_id: str, turn: Turn, lease_seconds: float
    ) -> None:
        self._conversations = conversations
        self._tenant_id = tenant_id
        self._turn = turn
        self._lease_seconds = lease_seconds
        self._over = asyncio.Event()
        self._renewing = asyncio.create_task(self._renew())

    async def _renew(self) -> None:
        until = monotonic() + MOST_TURN_SECONDS
        while monotonic() < until and not await _set_within(self._over, self._lease_seconds / 3):
            try:
                if not await self._conversations.renew(
                    self._tenant_id, self._turn, lease_seconds=self._lease_seconds
                ):
                    return
            except AssayError as error:
                log.info("conversation_turn_not_renewed", reason=error.code)

    async def end(self) -> None:
        """Renew no more."""
        self._over.set()
        await asyncio.wait([self._renewing])


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


def _turn(context: Context) -> Turn | None:
    return context.conversation.turn if context.conversation else None


def _patience(context: Context, chat: Chat) -> float:
    if chat.when_busy == "refuse":
        return 0.0
    return max(0.0, context.request.patience.max_wait_timeout_s - (monotonic() - context.arrived))


def _new_messages(chat: Chat) -> list[Message]:
    # instructions come with each request and are never the conversation's
    return [each for each in chat.messages if each.get("role") not in _INSTRUCTING]


def _reply(context: Context) -> CompletionReply:
    if context.transformed is not None:
        return context.transformed.reply
    assert context.settled is not None  # the pipeline appends what is settled
    return context.settled.entry.reply


def reply_message(reply: CompletionReply) -> Message:
    """The reply's message as a later call may say it again: its first choice, or its text."""
    choices = json.loads(reply.choices) if reply.choices else []
    message = choices[0].get("message") if choices else None
    if not message:
        return {"role": "assistant", "content": reply.text}
    kept = {name: message[name] for name in _REPLY_PARTS if message.get(name)}
    if "tool_calls" not in kept:
        # a message without any of the two is refused as input
        kept.setdefault("content", reply.text)
    return {"role": "assistant", **kept}


def _summary_message(summary: str) -> Message:
    content = prompt(SUMMARY_TEMPLATE, mark=fence_mark(summary), summary=summary)
    return {"role": "system", "content": content}


def fence_mark(text: str) -> str:
    """What fences the text off in a prompt: made of the text, which therefore cannot hold it."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def prompt(template: str, **values: str) -> str:
    """The prompt of that name and number; values are put in as they are."""
    return _prompt_files()[template].substitute(values).strip()


@cache
def _prompt_files() -> Mapping[str, Template]:
    folder = files("gateway") / "prompts"
    return {
        each.name.removesuffix(".md"): Template(each.read_text(encoding="utf-8")) for each in folder.iterdir()
    }


def _size(message: Message) -> int:
    return len(json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass"))
