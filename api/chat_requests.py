"""What an OpenAI client asks for: the body of a chat completion, checked and put into the gateway's words.

Plain checks instead of models: a body may be megabytes of messages, and all of it but a few fields is passed
on as it came.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from domain.completion import Chat, Patience
from domain.errors import InvalidInput
from domain.gateway import Caller, check_session_id
from domain.keys import MAX_REPLY_TOKENS, check_profile

MAX_MESSAGES = 2_048
MAX_CHOICES = 16
MAX_WAIT_SECONDS = 600.0
#: of arrays and objects within each other; what is deeper is no schema of a tool but an attack
MAX_DEPTH = 64
_MAX_NAME_LENGTH = 255
_MAX_MODEL_LENGTH = 200

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
#: what an estimate can bound by its bytes
PARTS = ("text", "refusal")
#: those of other protocols, too; a picture's address, or its few bytes, can stand for thousands of tokens
UNSERVED_PARTS = (
    "image_url", "input_image", "image", "image_file", "video_url",
    "input_audio", "audio", "file", "input_file",
)  # fmt: skip
#: run by the client; what an upstream runs by itself, such as a search, costs more than its tokens
TOOLS = ("function", "custom")


@dataclass(frozen=True)
class Kind:
    """What a parameter may be, in words and as a check."""

    expected: str
    holds: Callable[[Any], bool]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(low: float, high: float) -> Kind:
    return Kind(
        f"a number from {low:g} to {high:g}", lambda value: _is_number(value) and low <= value <= high
    )


def _integer(low: int, high: int) -> Kind:
    def holds(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return Kind(f"an integer from {low:,} to {high:,}", holds)


def _one_of(*values: str) -> Kind:
    return Kind("one of " + ", ".join(map(repr, values)), lambda value: value in values)


def _list(at_most: int, item: type, plural: str) -> Kind:
    def holds(value: Any) -> bool:
        is_list = isinstance(value, list) and len(value) <= at_most
        return is_list and all(isinstance(each, item) for each in value)

    return Kind(f"a list of at most {at_most} {plural}", holds)


_TEXT = Kind("a string", lambda value: isinstance(value, str))
_NAME = Kind(
    f"a string of at most {_MAX_NAME_LENGTH} characters",
    lambda value: isinstance(value, str) and len(value) <= _MAX_NAME_LENGTH,
)
# it is shown in terminals and logs: no control character, no line's end, nothing that turns the writing
_MODEL = Kind(
    f"a string of at most {_MAX_MODEL_LENGTH} printable characters without spaces",
    lambda value: (
        isinstance(value, str)
        and len(value) <= _MAX_MODEL_LENGTH
        and value.isprintable()
        and not any(map(str.isspace, value))
    ),
)
_BOOLEAN = Kind("true or false", lambda value: isinstance(value, bool))
_OBJECT = Kind("an object", lambda value: isinstance(value, dict))
_TEXT_OR_OBJECT = Kind("a string or an object", lambda value: isinstance(value, str | dict))
_STOP = Kind(
    "a string or a list of at most 4 strings",
    lambda value: isinstance(value, str) or _list(4, str, "strings").holds(value),
)
_TYPED = Kind(
    "an object with a 'type'", lambda value: isinstance(value, dict) and isinstance(value.get("type"), str)
)
_TOKENS = _integer(1, MAX_REPLY_TOKENS)
_SIGNED_64 = _integer(-(2**63), 2**63 - 1)

#: passed on as they are
PARAMETERS: Mapping[str, Kind] = {
    "frequency_penalty": _number(-2, 2),
    "function_call": _TEXT_OR_OBJECT,
    "functions": _list(128, dict, "objects"),
    "logit_bias": _OBJECT,
    "logprobs": _BOOLEAN,
    "metadata": _OBJECT,
    "modalities": Kind("['text'], the only one here", lambda value: value == ["text"]),
    "n": _integer(1, MAX_CHOICES),
    "parallel_tool_calls": _BOOLEAN,
    "presence_penalty": _number(-2, 2),
    "prompt_cache_key": _NAME,
    "prompt_cache_options": _OBJECT,
    "prompt_cache_retention": _NAME,
    "reasoning_effort": _NAME,
    "response_format": _TYPED,
    "safety_identifier": _NAME,
    "seed": _SIGNED_64,
    # the others cost more than the price that the ledger counts with
    "service_tier": _one_of("auto", "default", "flex"),
    "stop": _STOP,
    "store": Kind("false: the gateway lets nobody keep a chat", lambda value: value is False),
    "temperature": _number(0, 2),
    "tool_choice": _TEXT_OR_OBJECT,
    "tools": _list(128, dict, "objects"),
    "top_logprobs": _integer(0, 20),
    "top_p": _number(0, 1),
    "user": _NAME,
    "verbosity": _NAME,
}
#: read here, and not passed on
OWN: Mapping[str, Kind] = {
    "model": _MODEL,
    "messages": Kind("a list of messages", lambda value: isinstance(value, list)),
    "max_tokens": _TOKENS,
    "max_completion_tokens": _TOKENS,
    "stream": _BOOLEAN,
    "stream_options": _OBJECT,
    "session": _TEXT,
    "session_when_busy": _one_of("wait", "refuse"),
    "profile": _NAME,
    "wait_on_rate_limit": _BOOLEAN,
    "max_wait_timeout_s": _number(0, MAX_WAIT_SECONDS),
    "retry_budget_s": _number(0, MAX_WAIT_SECONDS),
}
_KNOWN = {**PARAMETERS, **OWN}
#: OpenAI's own that cannot be served: what they cost is in no estimate
UNSERVED = ("audio", "moderation", "prediction", "web_search_options")
_STREAM_OPTIONS = ("include_usage", "include_obfuscation")


@dataclass(frozen=True)
class ChatRequest:
    """A chat completion as a client asked for it; `max_tokens` is of one choice, and may not be stated."""

    model: str
    chat: Chat
    max_tokens: int | None
    profile: str
    patience: Patience
    stream: bool
    include_usage: bool


def read_chat(body: bytes) -> ChatRequest:
    """The request in the body; raises `InvalidInput`, whose `field` is OpenAI's `param`."""
    document = _known(_document(body))
    stream = document.get("stream", False)
    return ChatRequest(
        model=_required(document, "model"),
        chat=_chat(document),
        max_tokens=document.get("max_completion_tokens", document.get("max_tokens")),
        profile=document.get("profile", ""),
        patience=_patience(document),
        stream=stream,
        include_usage=_include_usage(document, stream),
    )


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"The body is no JSON: {error}.", field="body") from error
    if not isinstance(document, dict):
        raise InvalidInput("The body is no JSON object.", field="body")
    # few brackets cannot nest deeply, and a character that is not there need not be looked for
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH or b"\\u0000" in body:
        for text in _texts(document, MAX_DEPTH):
            if "\0" in text:
                raise InvalidInput("The body has the character U+0000; leave it out.", field="body")
    return document


def _texts(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        if not depth:
            raise InvalidInput(f"The body is nested more than {MAX_DEPTH} levels deep.", field="body")
        yield from value if isinstance(value, dict) else ()
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each, depth - 1)


def _known(document: dict[str, Any]) -> dict[str, Any]:
    """The parameters that are set, once all are known and what they should be."""
    found = {}
    for name, value in document.items():
        # as clients write "not set"
        if value is None:
            continue
        kind = _KNOWN.get(name)
        if kind is None:
            raise _unknown(name)
        if not kind.holds(value):
            raise InvalidInput(f"Invalid value for '{name}': expected {kind.expected}.", field=name)
        found[name] = value
    return found


def _unknown(name: str) -> InvalidInput:
    if name in UNSERVED:
        return InvalidInput(
            f"'{name}' is not served here: nobody could say beforehand what it costs.", field=name
        )
    return InvalidInput(f"Unrecognized request argument supplied: {name[:100]}", field=name[:100])


def _required(document: Mapping[str, Any], name: str) -> Any:
    if not document.get(name):
        raise InvalidInput(f"Missing required parameter: '{name}'.", field=name)
    return document[name]


def _chat(document: Mapping[str, Any]) -> Chat:
    messages = _required(document, "messages")
    if len(messages) > MAX_MESSAGES:
        raise InvalidInput(
            f"Invalid value for 'messages': {len(messages):,}, at most {MAX_MESSAGES:,} are possible.",
            field="messages",
        )
    for index, message in enumerate(messages):
        _check_message(f"messages[{index}]", message)
    for index, tool in enumerate(document.get("tools", ())):
        _check_tool(f"tools[{index}].type", tool.get("type"))
    return Chat(
        messages=tuple(messages),
        parameters={name: document[name] for name in document if name in PARAMETERS},
        session_id=_session(document),
        when_busy=document.get("session_when_busy", "wait"),
    )


def _session(document: Mapping[str, Any]) -> str:
    if "session" not in document:
        return ""
    if document.get("n", 1) > 1:
        raise InvalidInput(
            "A turn of a conversation has one answer: leave 'n' out, or the session.", field="n"
        )
    return check_session_id(document["session"])


def _check_message(where: str, message: object) -> None:
    if not isinstance(message, dict):
        raise InvalidInput(f"Invalid value for '{where}': expected an object.", field=where)
    role = message.get("role")
    if role not in ROLES:
        raise InvalidInput(
            f"Invalid value for '{where}.role': expected {_one_of(*ROLES).expected}.", field=f"{where}.role"
        )
    if message.get("audio") is not None:
        raise _unserved(f"{where}.audio", "A stored sound")
    content = message.get("content")
    if isinstance(content, str):
        return
    # an assistant that called tools may have said nothing
    if content is None and role == "assistant":
        return
    if not isinstance(content, list) or not content:
        raise InvalidInput(
            f"Invalid value for '{where}.content': expected a string or a list of parts.",
            field=f"{where}.content",
        )
    for index, part in enumerate(content):
        _check_part(f"{where}.content[{index}]", part)


def _check_part(where: str, part: object) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in UNSERVED_PARTS:
        raise _unserved(f"{where}.type", f"A part of the type '{kind}'")
    if kind not in PARTS:
        raise InvalidInput(
            f"Invalid value for '{where}.type': expected {_one_of(*PARTS).expected}.", field=f"{where}.type"
        )
    assert isinstance(part, dict)
    if kind == "text" and not isinstance(part.get("text"), str):
        raise InvalidInput(f"Invalid value for '{where}.text': expected a string.", field=f"{where}.text")


def _unserved(where: str, what: str) -> InvalidInput:
    return InvalidInput(
        f"Invalid value for '{where}': {what} is not served here: nobody could say beforehand what it costs. "
        "Send text.",
        field=where,
    )


def _check_tool(where: str, kind: object) -> None:
    if kind not in TOOLS:
        raise InvalidInput(
            f"Invalid value for '{where}': expected {_one_of(*TOOLS).expected}: what an upstream runs "
            "by itself costs more than its tokens.",
            field=where,
        )


def _patience(document: Mapping[str, Any]) -> Patience:
    return Patience(**{name: document[name] for name in _PATIENCE if name in document})


_PATIENCE = ("wait_on_rate_limit", "max_wait_timeout_s", "retry_budget_s")


def _include_usage(document: Mapping[str, Any], stream: bool) -> bool:
    options = document.get("stream_options", {})
    if options and not stream:
        raise InvalidInput("'stream_options' is for requests with 'stream': true.", field="stream_options")
    for name, value in options.items():
        where = f"stream_options.{name[:100]}"
        if name not in _STREAM_OPTIONS:
            raise InvalidInput(f"Unrecognized request argument supplied: {where}", field=where)
        if value is not None and not isinstance(value, bool):
            raise InvalidInput(f"Invalid value for '{where}': expected true or false.", field=where)
    return bool(options.get("include_usage"))


def profile_of(caller: Caller, asked: str) -> str:
    """The profile that pays; raises `InvalidInput` for another one than the key's own."""
    if asked and caller.profile not in ("", asked):
        raise InvalidInput(
            f"This key pays from the profile {caller.profile!r}; leave 'profile' out.", field="profile"
        )
    return caller.profile or (check_profile(asked) if asked else "")
