"""Chats in OpenAI's protocol for models that speak another one: there and back in LangChain's words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from domain.completion import Chat, FinishReason
from domain.errors import ModelRefused
from gateway.replies import storable, to_json

if TYPE_CHECKING:
    from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage

#: every client is opened with these
_OPENED_WITH = ("temperature", "top_p")
_UNDERSTOOD = {*_OPENED_WITH, "stop", "tools", "tool_choice", "response_format"}
#: they change nothing in a reply
_OF_NO_EFFECT = {"metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"}
#: they ask for what happens anyway
_ANYWAY: Mapping[str, object] = {
    "frequency_penalty": 0,
    "logit_bias": {},
    "logprobs": False,
    "n": 1,
    "parallel_tool_calls": True,
    "presence_penalty": 0,
    "top_logprobs": 0,
}
_FINISHED = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.FILTERED: "content_filter",
}


@dataclass(frozen=True)
class Wishes:
    """What a chat asks for beside its messages, in LangChain's words."""

    opened_with: Mapping[str, Any] = field(default_factory=dict)
    stop: Sequence[str] = ()
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str | None = None
    schema: Mapping[str, Any] | None = None


def wishes_of(chat: Chat, model: str) -> Wishes:
    """The chat's parameters; raises `ModelRefused` for one that cannot be passed on."""
    stated = {name: value for name, value in chat.parameters.items() if value is not None}
    for name, value in stated.items():
        if name not in _UNDERSTOOD | _OF_NO_EFFECT and _ANYWAY.get(name) != value:
            raise _cannot(model, name)
    choice = _tool_choice(stated.get("tool_choice", "auto"), model)
    tools, schema = stated.get("tools") or (), _schema(stated.get("response_format"), model)
    if choice == "none":
        tools, choice = (), None
    if tools and schema is not None:
        raise ModelRefused(
            f"{model} takes either tools or a response_format in one call.", field="response_format"
        )
    stop = stated.get("stop") or ()
    return Wishes(
        {name: stated[name] for name in _OPENED_WITH if name in stated},
        (stop,) if isinstance(stop, str) else tuple(stop),
        tools,
        choice,
        schema,
    )


def _cannot(model: str, name: str) -> ModelRefused:
    return ModelRefused(f"{name}: {model} cannot be asked for that; leave it out.", field=name)


def _tool_choice(stated: object, model: str) -> str | None:
    words = {"auto": None, "none": "none", "required": "any"}
    if isinstance(stated, str) and stated in words:
        return words[stated]
    function = stated.get("function") if isinstance(stated, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise _cannot(model, "tool_choice")
    return name


def _schema(stated: object, model: str) -> Mapping[str, Any] | None:
    if stated is None or stated == {"type": "text"}:
        return None
    named = stated.get("json_schema") if isinstance(stated, Mapping) else None
    asked = named if isinstance(named, Mapping) else {}
    if not isinstance(schema := asked.get("schema"), Mapping):
        raise ModelRefused(
            f"response_format: {model} takes a json_schema with its schema, or text.", field="response_format"
        )
    # LangChain has the name of a schema in its title
    return {"title": asked.get("name", "reply"), **schema}


def messages_of(chat: Chat, model: str) -> "list[BaseMessage]":
    """The chat's messages as LangChain's; raises `ModelRefused` for what are none."""
    from langchain_core.messages import convert_to_messages

    try:
        return convert_to_messages([dict(each) for each in chat.messages])
    except (ValueError, TypeError, KeyError, NotImplementedError):
        # its words would quote the message
        raise ModelRefused(
            f"messages: {model} cannot be given these; each needs a role and a content.", field="messages"
        ) from None


def choice_of(raw: "AIMessage", reason: FinishReason) -> dict[str, Any]:
    """The reply as a choice in OpenAI's protocol."""
    calls = [_call(each["id"], each["name"], to_json(each["args"])) for each in raw.tool_calls]
    # what is no JSON is the caller's to judge
    calls += [_call(each["id"], each["name"], each["args"]) for each in raw.invalid_tool_calls]
    message: dict[str, Any] = {"role": "assistant", "content": raw.text or None, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    finished = "tool_calls" if calls and reason is FinishReason.STOP else _FINISHED[reason]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finished}
    whole: dict[str, Any] = storable(choice)
    return whole


def _call(id_: str | None, name: str | None, arguments: str | None) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments or ""}}


class Telling:
    """Tells a reply while it is written: LangChain's chunks as those of OpenAI's protocol."""

    def __init__(self) -> None:
        self._role: dict[str, Any] = {"role": "assistant"}
        self._calls: dict[int | str | None, int] = {}

    def chunk(self, chunk: "AIMessageChunk") -> list[dict[str, Any]]:
        """The choices of that chunk, if it tells anything."""
        delta: dict[str, Any] = {}
        if text := chunk.text:
            delta["content"] = text
        if chunk.tool_call_chunks:
            delta["tool_calls"] = [self._call(each) for each in chunk.tool_call_chunks]
        if not delta:
            return []
        delta, self._role = self._role | delta, {}
        told: list[dict[str, Any]] = storable([{"index": 0, "delta": delta, "finish_reason": None}])
        return told

    def end(self, choice: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The last chunk: why the reply ended."""
        return [{"index": 0, "delta": {**self._role}, "finish_reason": choice["finish_reason"]}]

    def _call(self, chunk: Mapping[str, Any]) -> dict[str, Any]:
        # LangChain counts the parts of a message, the protocol its calls
        number = self._calls.setdefault(chunk["index"], len(self._calls))
        function = {"arguments": chunk["args"] or ""}
        if chunk["name"] is None:
            return {"index": number, "function": function}
        return {"index": number, "id": chunk["id"], "type": "function"} | {
            "function": {"name": chunk["name"], **function}
        }
