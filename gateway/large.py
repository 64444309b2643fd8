"""Large models through LangChain: one upstream a provider, opened when it is first asked."""

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from domain.completion import CompletionReply, CompletionRequest, FinishReason, Message, Usage
from domain.errors import ModelUnavailable
from gateway.providers import ANTHROPIC, OPENAI, Provider
from gateway.refusals import translated

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage, BaseMessage

DEFAULT_TIMEOUT_SECONDS = 120.0
#: open clients of one provider: a model at one limit of tokens each
_MAX_CLIENTS = 64
#: tokens of a reply whose server does not count them: never fewer than there are
_BYTES_PER_TOKEN = 3

_LENGTH = {"length", "max_tokens", "max_output_tokens", "model_context_window_exceeded"}
_FILTERED = {"content_filter", "refusal", "safety", "blocklist", "prohibited_content", "recitation"}


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
        self._temperature = temperature
        self._client = lru_cache(_MAX_CLIENTS)(self._open)

    async def complete(self, request: CompletionRequest) -> CompletionReply:
        """The reply; raises `ModelUnavailable`, `UnknownModel`, `ModelRefused` or `PromptTooLong`."""
        from langsmith import tracing_context

        name = request.model.removeprefix(f"{self._provider.name}:")
        # nobody else gets to see a prompt, whatever the environment says
        with translated(request.model, self._provider), tracing_context(enabled=False):
            # the first time it imports the provider's package, which takes a second or more
            client = await asyncio.to_thread(self._client, name, request.max_tokens)
            raw = await self._ask(client, request)
        return _reply(raw, request)

    async def _ask(self, client: "BaseChatModel", request: CompletionRequest) -> "AIMessage":
        runnable: Any = client
        if request.schema and self._provider.structured_output:
            strict = {"strict": True} if self._provider.client == OPENAI else {}
            # `include_raw`: reading the reply is the caller's, who knows the rubric
            runnable = client.with_structured_output(
                dict(request.schema), method="json_schema", include_raw=True, **strict
            )
        messages = [_message(each, self._provider) for each in request.messages]
        try:
            # the client's own limit is one of silence; this one is of the whole call
            async with asyncio.timeout(self._timeout_seconds):
                answer = await runnable.ainvoke(messages)
        except TimeoutError:
            raise ModelUnavailable(
                f"{request.model} did not answer within {self._timeout_seconds:g} s.", in_doubt=True
            ) from None
        except Exception as error:
            if (cut := _cut_completion(error)) is not None:
                return cut
            raise
        raw: AIMessage = answer["raw"] if isinstance(answer, Mapping) else answer
        return raw

    def _open(self, name: str, max_tokens: int) -> "BaseChatModel":
        from langchain.chat_models import init_chat_model

        arguments = self._provider.arguments(max_tokens)
        if self._temperature is not None:
            arguments["temperature"] = self._temperature
        client: BaseChatModel = init_chat_model(
            name,
            model_provider=self._provider.client,
            timeout=self._timeout_seconds,
            max_retries=0,
            **arguments,
        )
        return client


def _message(message: Message, provider: Provider) -> "BaseMessage":
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

    if message.role == "system" and provider.client == ANTHROPIC:
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
    """The reply inside an error: OpenAI's client raises one when a structured reply was cut or filtered."""
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
    text = raw.text or _arguments(raw)
    return CompletionReply(
        text=text,
        usage=_usage(raw, request.messages, text),
        model=request.model,
        finish_reason=_finish_reason(raw),
    )


def _arguments(raw: "AIMessage") -> str:
    """The reply of a model that was made to call a tool instead, as LangChain does for the oldest ones."""
    return json.dumps(raw.tool_calls[0]["args"], ensure_ascii=False) if raw.tool_calls else ""


def _finish_reason(raw: "AIMessage") -> FinishReason:
    stated = raw.response_metadata
    details = stated.get("incomplete_details") or {}
    said = (
        details.get("reason")
        or stated.get("finish_reason")
        or stated.get("stop_reason")
        or stated.get("done_reason")
    )
    word = str(said or "").lower()
    if word in _FILTERED or raw.additional_kwargs.get("refusal"):
        return FinishReason.FILTERED
    return FinishReason.LENGTH if word in _LENGTH else FinishReason.STOP


def _usage(raw: "AIMessage", messages: Sequence[Message], text: str) -> Usage:
    if (used := raw.usage_metadata) is None or not used["input_tokens"]:
        return Usage(_estimate("".join(each.content for each in messages)), _estimate(text))
    return Usage(
        tokens_in=used["input_tokens"],
        tokens_out=used["output_tokens"],
        tokens_cached=used.get("input_token_details", {}).get("cache_read") or 0,
    )


def _estimate(text: str) -> int:
    return math.ceil(len(text.encode()) / _BYTES_PER_TOKEN)
