"""Large models through LangChain: one upstream a provider, opened when it is first asked."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from domain.completion import (
    Chat,
    CompletionReply,
    CompletionRequest,
    FinishReason,
    Message,
    OnChunk,
    Usage,
)
from domain.errors import ModelRefused, ModelUnavailable
from gateway.chats import Telling, Wishes, choice_of, messages_of, wishes_of
from gateway.providers import ANTHROPIC, Provider
from gateway.refusals import translated
from gateway.replies import estimated_usage, finish_reason, stated_usage, storable, to_json

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage

DEFAULT_TIMEOUT_SECONDS = 120.0
#: open clients of one provider: a model with one limit of tokens and one temperature each
_MAX_CLIENTS = 64


@dataclass(frozen=True)
class _Call:
    """What is asked, and what of it."""

    runnable: Any
    messages: "list[BaseMessage]"
    arguments: Mapping[str, Any]


class LangChainModel:
    """The models of one provider; a reply is asked for once, retries are the caller's."""

    def __init__(
        self,
        provider: Provider,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        temperature: float | None = None,
    ) -> None:
        self._provider = provider
        self._timeout_seconds = timeout_seconds
        self._opened_with = {} if temperature is None else {"temperature": temperature}
        self._client = lru_cache(_MAX_CLIENTS)(self._open)

    async def complete(self, request: CompletionRequest) -> CompletionReply:
        """The reply; raises `ModelUnavailable`, `UnknownModel`, `ModelRefused` or `PromptTooLong`."""
        async with self._asked(request) as call:
            try:
                answer = await call.runnable.ainvoke(call.messages, **call.arguments)
            except Exception as error:
                if (raw := _cut_completion(error)) is None:
                    raise
            else:
                raw = _raw(answer)
        return _reply(raw, request)

    async def stream(self, request: CompletionRequest, on_chunk: OnChunk) -> CompletionReply:
        """As `complete`, told chunk by chunk; a reply that breaks off is in doubt."""
        telling = Telling()
        chunks: list[AIMessageChunk] = []
        async with self._asked(request) as call:
            async for answer in call.runnable.astream(call.messages, **call.arguments):
                chunk: AIMessageChunk = _raw(answer)
                chunks.append(chunk)
                if choices := telling.chunk(chunk):
                    await on_chunk(choices)
            whole = self._whole(request.model, chunks)
        await on_chunk(telling.end(choice_of(whole, _finish_reason(whole))))
        return _reply(whole, request)

    @asynccontextmanager
    async def _asked(self, request: CompletionRequest) -> AsyncIterator[_Call]:
        """What is to be asked in the block, whose time is limited and whose errors become ours."""
        from langsmith import tracing_context

        # nobody else gets to see a prompt, whatever the environment says
        with translated(request.model, self._provider), tracing_context(enabled=False):
            call = await self._call(request)
            try:
                # the client's own limit is one of silence; this one is of the whole call
                async with asyncio.timeout(self._timeout_seconds):
                    yield call
            except TimeoutError:
                raise ModelUnavailable(
                    f"{request.model} did not answer within {self._timeout_seconds:g} s.", in_doubt=True
                ) from None

    async def _call(self, request: CompletionRequest) -> _Call:
        if request.chat is not None:
            return await self._chat(request, request.chat)
        client = await self._opened(request)
        runnable: Any = client
        if request.schema and self._provider.structured_output:
            runnable = _structured(client, request.schema)
        return _Call(runnable, [_message(each, self._provider) for each in request.messages], {})

    async def _chat(self, request: CompletionRequest, chat: Chat) -> _Call:
        wishes = wishes_of(chat, request.model)
        messages = messages_of(chat, request.model)
        client = await self._opened(request, **wishes.opened_with)
        stop = {"stop": list(wishes.stop)} if wishes.stop else {}
        try:
            return _Call(_bound(client, wishes), messages, stop)
        except NotImplementedError:
            raise ModelRefused(f"{request.model} takes no tools and no schema.", field="tools") from None

    async def _opened(self, request: CompletionRequest, **arguments: Any) -> "BaseChatModel":
        name = self._provider.model_name(request.model)
        # the first time it imports the provider's package, which takes a second or more
        return await asyncio.to_thread(
            self._client, name, request.max_tokens, **(self._opened_with | arguments)
        )

    def _open(self, name: str, max_tokens: int, **arguments: Any) -> "BaseChatModel":
        from langchain.chat_models import init_chat_model

        client: BaseChatModel = init_chat_model(
            name,
            model_provider=self._provider.name,
            timeout=self._timeout_seconds,
            max_retries=0,
            **(self._provider.arguments(max_tokens) | arguments),
        )
        return client

    def _whole(self, model: str, chunks: "list[AIMessageChunk]") -> "AIMessage":
        if not chunks:
            raise ModelUnavailable(f"{model} ended its reply before it began.", in_doubt=True)
        first, *rest = chunks
        whole = first + rest
        if self._provider.name == ANTHROPIC and not _reason(whole):
            # its client takes a connection that closes for the end of the reply
            raise ModelUnavailable(f"{model} broke off its reply.", in_doubt=True)
        return whole


def _bound(client: "BaseChatModel", wishes: Wishes) -> Any:
    if wishes.tools:
        choice = {} if wishes.tool_choice is None else {"tool_choice": wishes.tool_choice}
        return client.bind_tools([dict(each) for each in wishes.tools], **choice)
    if wishes.schema is not None:
        return _structured(client, wishes.schema)
    return client


def _structured(client: "BaseChatModel", schema: Mapping[str, Any]) -> Any:
    """The client, asked for that schema; what reads the reply is left out: it fails on one that was cut."""
    structured: Any = client.with_structured_output(dict(schema), method="json_schema", include_raw=True)
    return structured.first


def _raw(answer: Any) -> Any:
    return answer["raw"] if isinstance(answer, Mapping) else answer


def _message(message: Message, provider: Provider) -> "BaseMessage":
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

    if message.role == "system" and provider.name == ANTHROPIC:
        # the rubric is the same for a whole batch, and what is cached costs a tenth
        cached = {"type": "text", "text": message.content, "cache_control": {"type": "ephemeral"}}
        return SystemMessage(content=[cached])
    kinds: dict[str, type[BaseMessage]] = {
        "system": SystemMessage,
        "user": HumanMessage,
        "assistant": AIMessage,
    }
    return kinds[message.role](content=message.content)


def _cut_completion(error: Exception) -> "AIMessage | None":
    """The reply inside an error: clients made of OpenAI's raise one for a structured reply that was cut."""
    from langchain_core.messages import AIMessage

    completion = getattr(error, "completion", None)
    if completion is None or not completion.choices:
        return None
    choice, usage = completion.choices[0], completion.usage
    message = AIMessage(
        content=choice.message.content or "", response_metadata={"finish_reason": choice.finish_reason}
    )
    if usage is not None:
        details = usage.prompt_tokens_details
        message.usage_metadata = {
            "input_tokens": usage.prompt_tokens,
            "output_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
            "input_token_details": {"cache_read": (details and details.cached_tokens) or 0},
        }
    return message


def _reply(raw: "AIMessage", request: CompletionRequest) -> CompletionReply:
    reason = _finish_reason(raw)
    # the oldest models are made to call a tool instead, which is no wish of an agent
    text = storable(raw.text or ("" if request.chat else _arguments(raw)))
    choices = to_json([choice_of(raw, reason)])
    counted = _usage(raw)
    return CompletionReply(
        text=text,
        usage=counted or estimated_usage(_sent(request), choices, most_out=request.max_tokens),
        model=request.model,
        finish_reason=reason,
        usage_estimated=counted is None,
        choices=choices if request.chat else "",
    )


def _arguments(raw: "AIMessage") -> str:
    return json.dumps(raw.tool_calls[0]["args"], ensure_ascii=False) if raw.tool_calls else ""


def _reason(raw: "AIMessage") -> str:
    """The provider's word for why the reply ended."""
    stated = raw.response_metadata
    details = stated.get("incomplete_details") or {}
    said = (
        details.get("reason")
        or stated.get("finish_reason")
        or stated.get("stop_reason")
        or stated.get("done_reason")
    )
    return str(said or "")


def _finish_reason(raw: "AIMessage") -> FinishReason:
    return FinishReason.FILTERED if raw.additional_kwargs.get("refusal") else finish_reason(_reason(raw))


def _usage(raw: "AIMessage") -> Usage | None:
    if (used := raw.usage_metadata) is None:
        return None
    stated = {
        "prompt_tokens": used["input_tokens"],
        "completion_tokens": used["output_tokens"],
        "prompt_tokens_details": {"cached_tokens": used.get("input_token_details", {}).get("cache_read")},
    }
    return stated_usage(stated, wrote=bool(raw.text or raw.tool_calls))


def _sent(request: CompletionRequest) -> str:
    if request.chat is not None:
        return to_json([*request.chat.messages, dict(request.chat.parameters)])
    return to_json([[each.role, each.content] for each in request.messages]) + to_json(dict(request.schema))
