"""Summaries of what a conversation's window does not hold: made in the background, by the same model."""

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from domain.completion import Chat, CompletionRequest, FinishReason, Payer
from domain.errors import AssayError
from domain.gateway import Completions, Conversation, Conversations
from domain.identity import ClientStep
from gateway.conversations import DEFAULT_WINDOW, Message, Window, fence_mark, prompt

TEMPLATE = "conversation-summary@1"
#: a summary has at most 400 words
SUMMARY_TOKENS = 1_000
#: summaries under way in one process; what is too much is wanted again by the next turn
MOST_AT_ONCE = 4
#: messages that one summary is made of
MOST_MESSAGES = 200
#: how long the end of the process waits for summaries: one that is cut off is charged as a doubt
DRAIN_SECONDS = 5.0
_CANCEL_AGAIN_SECONDS = 0.5

log = structlog.get_logger("assay.gateway")


@dataclass(frozen=True)
class _Wanted:
    """Whose conversation, by which model, and who pays."""

    tenant_id: str
    session_id: str
    model: str
    payer: Payer
    trace_id: str


class Summaries:
    """At most one summary of a conversation at a time; one that fails leaves the conversation as it is."""

    def __init__(
        self,
        conversations: Conversations,
        completions: Callable[[], Completions],
        window: Window = DEFAULT_WINDOW,
        *,
        drain_seconds: float = DRAIN_SECONDS,
    ) -> None:
        """`completions` answers the door, which is made after what it is made of."""
        self._conversations = conversations
        self._completions = completions
        # a summary leaves room for several turns before the next one
        self._kept = Window(window.messages // 2, window.bytes // 2)
        self._most_bytes = 2 * window.bytes
        self._drain_seconds = drain_seconds
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._closed = False

    def want(self, request: CompletionRequest, payer: Payer) -> None:
        """Begin with a summary of the request's conversation, unless it, or too many, are on their way."""
        assert request.chat is not None  # only a chat has a conversation
        key = (payer.tenant_id, request.chat.session_id)
        if self._closed or key in self._tasks or len(self._tasks) >= MOST_AT_ONCE:
            return
        wanted = _Wanted(*key, request.model, payer, request.trace_id)
        task = asyncio.create_task(self._summarise(wanted))
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._ended(key, done))

    def _ended(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        del self._tasks[key]
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, AssayError):
            # older messages are not said until a later turn's summary succeeds
            log.info("conversation_not_summarised", tenant_id=key[0], reason=error.code)
        elif error is not None:
            log.error("background_task_failed", exc_info=error)

    async def _summarise(self, wanted: _Wanted) -> None:
        conversation = await self._conversations.read(wanted.tenant_id, wanted.session_id)
        messages = await self._conversations.messages(
            wanted.tenant_id, wanted.session_id, after=conversation.summary_seq, limit=MOST_MESSAGES
        )
        old = messages[: self._kept.begin(messages, mid_call=_calls_tools(messages))]
        if not old:
            return
        request = self._request(wanted, conversation, old)
        reply = await self._completions().complete(request)
        if reply.finish_reason is FinishReason.FILTERED or not reply.text.strip():
            log.info("conversation_not_summarised", tenant_id=wanted.tenant_id, reason="no_text")
            return
        await self._conversations.summarise(
            wanted.tenant_id, wanted.session_id, reply.text.strip(), conversation.summary_seq + len(old)
        )

    def _request(
        self, wanted: _Wanted, conversation: Conversation, old: Sequence[Message]
    ) -> CompletionRequest:
        text = _transcript(conversation.summary, old, self._most_bytes)
        asked = prompt(TEMPLATE, mark=fence_mark(text), conversation=text)
        return CompletionRequest(
            step=_step(conversation, len(old)),
            call_number=1,
            model=wanted.model,
            template=TEMPLATE,
            max_tokens=SUMMARY_TOKENS,
            payer=wanted.payer,
            trace_id=wanted.trace_id,
            chat=Chat(({"role": "user", "content": asked},)),
            refuse_underway=True,
        )

    async def close(self) -> None:
        """Begin no more, and wait a little for those under way; what is paid for is in the journal."""
        self._closed = True
        pending = set(self._tasks.values())
        if pending:
            _, pending = await asyncio.wait(pending, timeout=self._drain_seconds)
        while pending:
            for task in pending:
                task.cancel()
            # again and again: the drivers may swallow a cancellation in the moment of an answer
            _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_SECONDS)


def _step(conversation: Conversation, count: int) -> ClientStep:
    """The same for whoever makes this summary, so that it is paid for once."""
    name = f"{conversation.session_id}\0{conversation.summary_seq}\0{conversation.summary_seq + count}"
    return ClientStep(f"summary-{hashlib.sha256(name.encode()).hexdigest()[:32]}")


def _calls_tools(messages: Sequence[Message]) -> bool:
    """Whether the conversation stops in the middle of a call of tools."""
    return bool(messages) and (messages[-1].get("role") == "tool" or bool(messages[-1].get("tool_calls")))


def _transcript(summary: str, messages: Sequence[Message], most_bytes: int) -> str:
    """A line of JSON for each message, none longer than its share."""
    share = max(100, most_bytes // (len(messages) + 1))
    lines = [{"summary": _shortened(summary, share)}] if summary else []
    lines += [_line(each, share) for each in messages]
    return "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)


def _line(message: Message, share: int) -> dict[str, str]:
    line = {"role": str(message.get("role")), "text": _shortened(_text(message.get("content")), share)}
    if calls := message.get("tool_calls"):
        line["tool_calls"] = _shortened(json.dumps(calls, ensure_ascii=False), share)
    return line


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return " ".join(_part_text(each) for each in content)


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    return f"[{part.get('type', 'part')}]" if isinstance(part, Mapping) else "[part]"


def _shortened(text: str, most_bytes: int) -> str:
    shown = text.encode("utf-8", "replace")[:most_bytes].decode("utf-8", "ignore")
    left_out = len(text) - len(shown)
    return f"{shown} […{left_out} more characters]" if left_out else shown
