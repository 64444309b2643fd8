"""Replies in OpenAI's protocol, in our words: usage, the reason of the end, choices gathered from chunks."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from domain.completion import FinishReason, Usage

#: no reply has so many; what says more is no count
MOST_TOKENS = 10_000_000

_LENGTH = {"length", "max_tokens", "max_output_tokens", "model_context_window_exceeded"}
_FILTERED = {"content_filter", "refusal", "safety", "blocklist", "prohibited_content", "recitation"}
#: what each chunk may repeat, and what is no text that goes on
_STATED_ONCE = {"finish_reason", "id", "name", "role", "type"}

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
#: `NaN` and `Infinity` are no JSON, and some servers write them
_DECODER = json.JSONDecoder(parse_constant=lambda _: None)


def finish_reason(word: object) -> FinishReason:
    """The reason of the end that a provider's word means."""
    said = str(word or "").lower()
    if said in _FILTERED:
        return FinishReason.FILTERED
    return FinishReason.LENGTH if said in _LENGTH else FinishReason.STOP


def stated_usage(stated: object, *, wrote: bool) -> Usage | None:
    """The usage that a server states; `None` where there is none that can be believed."""
    if not isinstance(stated, Mapping):
        return None
    tokens_in, tokens_out = _count(stated.get("prompt_tokens")), _count(stated.get("completion_tokens"))
    if not tokens_in or tokens_out is None or (wrote and not tokens_out):
        return None
    details = stated.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, Mapping) else None
    return Usage(tokens_in, tokens_out, cached if cached and cached <= tokens_in else 0)


def _count(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS:
        return value
    return None


def estimated_usage(sent: str | bytes, written: str | bytes, *, most_out: int) -> Usage:
    """The most tokens that it can have been: a token has at least a byte."""
    return Usage(_bytes(sent), min(_bytes(written), most_out))


def _bytes(text: str | bytes) -> int:
    return len(text if isinstance(text, bytes) else _to_bytes(text))


def to_json(value: object) -> str:
    """Compact JSON; half a surrogate pair, which UTF-8 cannot carry, stays an escape."""
    return _to_bytes(_ENCODER.encode(value)).decode()


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def from_json(text: bytes) -> Any:
    """The value, without what Postgres and UTF-8 cannot carry; raises `ValueError` where it is none."""
    try:
        value = _DECODER.decode(text.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    # whatever they cannot carry can only have come as an escape
    return storable(value) if b"\\u" in text else value


def storable(value: Any) -> Any:
    """The same with a replacement character for NUL, and a question mark for half a surrogate pair."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    if isinstance(value, list):
        return [storable(each) for each in value]
    if isinstance(value, dict):
        return {storable(name): storable(each) for name, each in value.items()}
    return value


def are_choices(value: object) -> TypeGuard[list[dict[str, Any]]]:
    """Whether these are the choices of a whole reply, of which there is at least one."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, dict) and isinstance(each.get("message"), dict) for each in value)
    )


def text_of(choices: Sequence[Mapping[str, Any]]) -> str:
    """What the first choice says; the texts of its parts, where its content is parts."""
    content = choices[0]["message"].get("content") if choices else None
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") for part in parts if isinstance(part, Mapping))
    return "".join(each for each in texts if isinstance(each, str))


def reason_of(choices: Sequence[Mapping[str, Any]]) -> FinishReason:
    """Why the first choice ended; a refusal of the model itself is a withheld reply."""
    if choices[0]["message"].get("refusal"):
        return FinishReason.FILTERED
    return finish_reason(choices[0].get("finish_reason"))


def as_chunk(choices: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Whole choices as those of the one chunk that tells them."""
    return [_without(each, "message") | {"delta": _delta(each["message"])} for each in choices]


def _without(document: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in names}


def _delta(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return dict(message)
    numbered = [{"index": index, **call} for index, call in enumerate(calls) if isinstance(call, Mapping)]
    return {**message, "tool_calls": numbered}


class Gathering:
    """The choices of a streamed reply, put together from those of its chunks."""

    def __init__(self) -> None:
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, chunk: Sequence[Mapping[str, Any]]) -> None:
        """Hear the choices of one more chunk."""
        for each in chunk:
            index = each["index"] if isinstance(each.get("index"), int) else 0
            choice = self._choices.setdefault(index, {"message": {}})
            delta = each.get("delta")
            _merge(choice["message"], delta if isinstance(delta, Mapping) else {})
            _merge(choice, _without(each, "index", "delta", "message"))

    @property
    def began(self) -> bool:
        """Whether there was a choice, empty as it may be."""
        return bool(self._choices)

    @property
    def ended(self) -> bool:
        """Whether each choice that began has said why it ended."""
        return bool(self._choices) and all(each.get("finish_reason") for each in self._choices.values())

    def choices(self) -> list[dict[str, Any]]:
        """The choices with whole messages, in order."""
        whole = []
        for index, choice in sorted(self._choices.items()):
            parts: dict[str, Any] = _whole(choice)
            message = {"role": "assistant", "content": None} | parts.pop("message")
            parts.setdefault("finish_reason", None)
            whole.append({"index": index, "message": message, **parts})
        return whole


class _Pieces(list[str]):
    """A text that goes on."""


class _Items(dict[Any, Any]):
    """A list that goes on, by its items' `index`, or by their number."""


def _merge(target: dict[Any, Any], delta: Mapping[Any, Any]) -> None:
    for name, value in delta.items():
        had = target.get(name)
        if had is None:
            target[name] = _begun(name, value)
        elif isinstance(had, _Pieces) and isinstance(value, str):
            had.append(value)
        elif isinstance(had, _Items) and isinstance(value, list):
            _extend(had, value)
        elif isinstance(had, dict) and not isinstance(had, _Items) and isinstance(value, Mapping):
            _merge(had, value)
        elif name not in _STATED_ONCE and value is not None:
            target[name] = value


def _begun(name: Any, value: Any) -> Any:
    if isinstance(value, str) and name not in _STATED_ONCE:
        return _Pieces([value])
    if isinstance(value, Mapping):
        begun: dict[Any, Any] = {}
        _merge(begun, value)
        return begun
    if isinstance(value, list):
        _extend(items := _Items(), value)
        return items
    # an empty id or role may still come
    return value or None if name in _STATED_ONCE else value


def _extend(items: _Items, more: list[Any]) -> None:
    for each in more:
        index = each.get("index") if isinstance(each, Mapping) else None
        if isinstance(index, int):
            _merge(items, {index: _without(each, "index")})
        else:
            items[len(items)] = each


def _whole(value: Any) -> Any:
    if isinstance(value, _Pieces):
        return "".join(value)
    if isinstance(value, _Items):
        return [_whole(value[index]) for index in sorted(value)]
    if isinstance(value, dict):
        return {name: _whole(each) for name, each in value.items()}
    return value
