"""What the OpenAPI document shows of the routes in OpenAI's protocol."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

MODEL_EXAMPLE: Mapping[str, Any] = {
    "id": "openai:gpt-5-mini",
    "object": "model",
    "created": 0,
    "owned_by": "openai",
}
MODELS_EXAMPLE: Mapping[str, Any] = {"object": "list", "data": [MODEL_EXAMPLE]}
COMPLETION_EXAMPLE: Mapping[str, Any] = {
    "id": "chatcmpl-2f1f2a0e-9f3e-5a86-8a7b-0d8f1c9f6e11",
    "object": "chat.completion",
    "created": 1795349700,
    "model": "openai:gpt-5-mini",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "443"}, "finish_reason": "stop"},
    ],
    "usage": {
        "prompt_tokens": 12,
        "completion_tokens": 1,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 0},
        "cost_usd": "0.000005",
    },
}
STREAM_EXAMPLE = (
    'data: {"id": "chatcmpl-2f1f2a0e-9f3e-5a86-8a7b-0d8f1c9f6e11", "object": "chat.completion.chunk", '
    '"created": 1795349700, "model": "openai:gpt-5-mini", '
    '"choices": [{"index": 0, "delta": {"content": "443"}}]}\n\n'
    "data: [DONE]\n\n"
)
REQUEST_BODY: Mapping[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["model", "messages"],
                "properties": {
                    "model": {"type": "string"},
                    "messages": {"type": "array", "items": {"type": "object"}},
                    "max_tokens": {"type": "integer"},
                    "stream": {"type": "boolean"},
                    "session": {"type": "string"},
                    "session_when_busy": {"enum": ["wait", "refuse"]},
                    "profile": {"type": "string"},
                    "wait_on_rate_limit": {"type": "boolean"},
                    "max_wait_timeout_s": {"type": "number"},
                    "retry_budget_s": {"type": "number"},
                },
            },
            "example": {
                "model": "openai:gpt-5-mini",
                "messages": [{"role": "user", "content": "Port of HTTPS? Only the number."}],
                "max_tokens": 10,
            },
        }
    },
}

#: type, code and message by status
_ERRORS: Mapping[int, tuple[str, str, str]] = {
    400: ("invalid_request_error", "invalid_input", "Missing required parameter: 'messages'."),
    401: (
        "invalid_request_error",
        "invalid_api_key",
        "This key is not known, or it has expired.",
    ),
    402: ("insufficient_quota", "budget_exhausted", "The limit of this key is spent."),
    403: ("permission_error", "forbidden", "This key lacks the scope 'model'."),
    404: ("invalid_request_error", "model_not_found", "model: 'gpt' is not known here; known: openai:…."),
    409: (
        "invalid_request_error",
        "call_underway",
        "The same call is being answered now; ask again.",
    ),
    413: (
        "invalid_request_error",
        "limit_exceeded",
        "The body is larger than max_chat_bytes (10 MiB).",
    ),
    422: (
        "invalid_request_error",
        "idempotency_mismatch",
        "This Idempotency-Key was used with another body.",
    ),
    429: ("rate_limit_error", "rate_limit_exceeded", "The key's limit of 60 requests a minute is reached."),
    503: ("server_error", "model_unavailable", "The model does not answer; try again."),
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route in OpenAI's protocol."""
    return {status: _refusal(status) for status in statuses}


def _refusal(status: int) -> dict[str, Any]:
    type_, code, message = _ERRORS[status]
    example = {"error": {"message": message, "type": type_, "param": None, "code": code}}
    content = {"schema": {"type": "object"}, "example": example}
    return {"description": HTTPStatus(status).phrase, "content": {"application/json": content}}
