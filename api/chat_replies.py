"""What an OpenAI client is answered: completions and their chunks, errors, what is left of limits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import orjson

from api.errors import STATUSES
from api.money import format_usd
from domain.completion import CompletionReply, CompletionRequest, FinishReason
from domain.errors import (
    AssayError,
    BudgetExhausted,
    ConversationBusy,
    Forbidden,
    IdempotencyMismatch,
    InvalidInput,
    ModelAccessDenied,
    ModelRefused,
    ModelReplyInvalid,
    PromptTooLong,
    RateLimited,
    Unauthenticated,
    UnknownModel,
    UnpricedModel,
)
from domain.gateway import LimitState, RateLimit
from domain.money import Money

DONE = b"data: [DONE]\n\n"

_FINISHED: Mapping[FinishReason, str] = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.FILTERED: "content_filter",
}
_INTERNAL = "Something failed on our side. Try again; if it stays, report the request id."


# --- replies ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heading:
    """What every document about one call begins with."""

    call_id: str
    created: int

    def begin(self, kind: str, model: str) -> bytes:
        """The beginning of a document of that kind, up to its `choices`."""
        head = {
            "id": f"chatcmpl-{self.call_id}",
            "object": kind,
            "created": self.created,
            "model": model,
        }
        return orjson.dumps(head)[:-1] + b',"choices":'


def completion(heading: Heading, reply: CompletionReply) -> bytes:
    """The reply as a `chat.completion`; its choices go out as the journal has them."""
    choices = reply.choices.encode() if reply.choices else orjson.dumps(_choices(reply))
    usage = orjson.dumps(_usage(reply))
    return heading.begin("chat.completion", reply.model) + choices + b',"usage":' + usage + b"}"


class Chunks:
    """Makes the events of one streamed reply."""

    def __init__(self, heading: Heading, request: CompletionRequest, *, include_usage: bool) -> None:
        self._begin = b"data: " + heading.begin("chat.completion.chunk", request.model)
        self._include_usage = include_usage
        # every chunk has the member, but for the last one as null
        self._end = b',"usage":null}\n\n' if include_usage else b"}\n\n"

    def event(self, choices: Sequence[Mapping[str, Any]]) -> bytes:
        """One chunk of the model's."""
        return self._begin + orjson.dumps(choices) + self._end

    def whole(self, reply: CompletionReply) -> bytes:
        """All of a reply that came at once: of a model that does not stream, or out of the journal."""
        choices = orjson.loads(reply.choices) if reply.choices else _choices(reply)
        return self.event([_as_delta(each) for each in choices])

    def last(self, reply: CompletionReply) -> bytes:
        """The end of a whole reply."""
        if not self._include_usage:
            return DONE
        return self._begin + b'[],"usage":' + orjson.dumps(_usage(reply)) + b"}\n\n" + DONE


def _choices(reply: CompletionReply) -> list[dict[str, Any]]:
    message = {"role": "assistant", "content": reply.text}
    return [{"index": 0, "message": message, "finish_reason": _FINISHED[reply.finish_reason]}]


def _as_delta(choice: Mapping[str, Any]) -> dict[str, Any]:
    """The choice as the only chunk of its text; the tools it calls say which of them they are."""
    delta = dict(choice["message"])
    if delta.get("tool_calls"):
        delta["tool_calls"] = [{"index": index, **each} for index, each in enumerate(delta["tool_calls"])]
    return {name: value for name, value in choice.items() if name != "message"} | {"delta": delta}


def _usage(reply: CompletionReply) -> dict[str, Any]:
    usage = reply.usage
    return {
        "prompt_tokens": usage.tokens_in,
        "completion_tokens": usage.tokens_out,
        "total_tokens": usage.tokens_in + usage.tokens_out,
        "prompt_tokens_details": {"cached_tokens": usage.tokens_cached},
        "cost_usd": format_usd(Money(reply.cost_nanodollars)),
    }


# --- models -------------------------------------------------------------------------------------------


def model_document(name: str, owner: str) -> dict[str, Any]:
    """A model as OpenAI describes one; nobody knows here when it was made."""
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}


# --- errors -------------------------------------------------------------------------------------------

#: where OpenAI's clients expect another status than the rest of this API answers
_STATUSES: Mapping[type[AssayError], int] = {
    **STATUSES,
    InvalidInput: 400,
    PromptTooLong: 400,
    UnpricedModel: 400,
    ModelRefused: 400,
    UnknownModel: 404,
    IdempotencyMismatch: 422,
    ModelAccessDenied: 502,
    ModelReplyInvalid: 502,
}
#: OpenAI's words, where it has one for the condition; ours are those of the problem documents
_CODES: Mapping[type[AssayError], str] = {
    Unauthenticated: "invalid_api_key",
    UnknownModel: "model_not_found",
    RateLimited: "rate_limit_exceeded",
    PromptTooLong: "context_length_exceeded",
}
_TYPES: Mapping[type[AssayError], str] = {
    BudgetExhausted: "insufficient_quota",
    RateLimited: "rate_limit_error",
    Forbidden: "permission_error",
}
#: who asks for a busy conversation to be refused wants to hear it, and not to wait in the client's retries
_SAID_ONCE = (ConversationBusy,)


def status_of(condition: type[AssayError]) -> int:
    """The status of a condition on these routes."""
    return next(_STATUSES[each] for each in condition.__mro__ if each in _STATUSES)


def error_document(error: AssayError) -> bytes:
    """The condition in OpenAI's form; a failure of ours says nothing of its inside."""
    status = status_of(type(error))
    return _error(
        message=_INTERNAL if status == HTTPStatus.INTERNAL_SERVER_ERROR else error.message,
        type_=_TYPES.get(type(error)) or _type_of(status),
        code=_CODES.get(type(error), error.code),
        param=error.field,
    )


def defect_document() -> bytes:
    """What is said of an error that nobody foresaw."""
    return _error(message=_INTERNAL, type_="server_error", code="internal_error", param=None)


def error_event(document: bytes) -> bytes:
    """An error in the middle of a stream, which ends without `[DONE]`: the client raises it as `APIError`."""
    return b"data: " + document + b"\n\n"


def error_headers(error: AssayError) -> dict[str, str]:
    """Whether and when to come again, as OpenAI's clients read it."""
    status = status_of(type(error))
    if status == HTTPStatus.UNAUTHORIZED:
        return {"WWW-Authenticate": 'Bearer realm="assay"'}
    again = status in _TRY_AGAIN and not isinstance(error, _SAID_ONCE)
    headers = {"x-should-retry": "true" if again else "false"} | _after(error.retry_after_seconds, status)
    return headers | limit_headers(error.states) if isinstance(error, RateLimited) else headers


_TRY_AGAIN = (
    HTTPStatus.CONFLICT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.SERVICE_UNAVAILABLE,
)


def _after(seconds: float | None, status: int) -> dict[str, str]:
    if status not in _TRY_AGAIN or seconds is None or not math.isfinite(seconds):
        return {}
    milliseconds = max(1, math.ceil(seconds * 1000))
    return {"Retry-After": str(math.ceil(milliseconds / 1000)), "retry-after-ms": str(milliseconds)}


def _type_of(status: int) -> str:
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"


def _error(*, message: str, type_: str, code: str, param: str | None) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": type_, "param": param, "code": code}})


# --- limits -------------------------------------------------------------------------------------------


def limit_headers(states: Sequence[LimitState]) -> dict[str, str]:
    """What is left of the caller's limits: by the IETF's draft, and in OpenAI's own headers.

    The draft names each limit; OpenAI's have one of requests and one of tokens: the one with least left.
    """
    if not states:
        return {}
    headers = {
        "RateLimit-Policy": ", ".join(_policy(each.limit) for each in states),
        "RateLimit": ", ".join(map(_remaining, states)),
    }
    for unit in ("requests", "tokens"):
        of_unit = [each for each in states if each.limit.unit == unit]
        if of_unit:
            least = min(of_unit, key=lambda state: state.left)
            headers |= _openai_limit(unit, least)
    return headers


@lru_cache(maxsize=1024)  # the same in every answer, until somebody sets another
def _policy(limit: RateLimit) -> str:
    if limit.unit == "calls":
        return f'"{_name(limit)}";q={limit.capacity};qu="concurrent-requests"'
    return f'"{_name(limit)}";q={limit.capacity};w=60' + (';qu="tokens"' if limit.unit == "tokens" else "")


def _remaining(state: LimitState) -> str:
    return f'"{_name(state.limit)}";r={max(0, state.left)};t={math.ceil(max(0.0, state.reset_seconds))}'


def _name(limit: RateLimit) -> str:
    # whose limit, without the id
    return f"{limit.subject.partition('/')[0]}-{limit.unit}"


def _openai_limit(unit: str, state: LimitState) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{unit}": str(state.limit.capacity),
        f"x-ratelimit-remaining-{unit}": str(max(0, state.left)),
        f"x-ratelimit-reset-{unit}": _duration(state.reset_seconds),
    }


def _duration(seconds: float) -> str:
    """As OpenAI writes it: `250ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{max(0, math.ceil(seconds * 1000))}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{math.ceil(rest)}s" if minutes else f"{rest:.3g}s"
