"""What providers refuse with, in the domain's errors.

Their messages are not passed on: some quote the prompt, some the key.
"""

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from domain.errors import (
    AssayError,
    ModelAccessDenied,
    ModelRefused,
    ModelUnavailable,
    PromptTooLong,
    UnknownModel,
)
from gateway.providers import Provider

#: a provider may ask for any wait; a longer one is cut to this
MAX_RETRY_AFTER_SECONDS = 600.0

_OVERFLOW = re.compile(
    r"context_length_exceeded|exceed_context|maximum context length|context (?:window|size)", re.I
)
_TRY_AGAIN = {408, 409, 425, 429}


def refusal(
    model: str,
    provider: Provider,
    status: int,
    headers: Mapping[str, str] | None = None,
    body: object = None,
    *,
    overflow: bool = False,
) -> AssayError:
    """What an answer with that status, headers and parsed body means; `overflow` where it is known."""
    if overflow or status == 413 or (status == 400 and _is_overflow(body)):
        return PromptTooLong(f"{model}: the messages are more than it reads at once.")
    if status in (401, 403):
        return ModelAccessDenied(f"{model}: access denied ({status}); check {provider.key_setting}.")
    if status == 404:
        return UnknownModel(f"model: the provider of {model!r} knows no model of that name.", field="model")
    said = f"status {status}{_said(body)}"
    if status in _TRY_AGAIN or status >= 500:
        return ModelUnavailable(
            f"{model} is not available now ({said}).", retry_after_seconds=_retry_after(headers or {})
        )
    return ModelRefused(f"{model}: the call was refused ({said}).{_hint(body)}")


@contextmanager
def translated(model: str, provider: Provider) -> Iterator[None]:
    """Raise what a provider's client raises as the domain's errors."""
    try:
        yield
    except AssayError:
        raise
    except Exception as error:  # noqa: BLE001  # every client has its own tree of errors
        # `from None`: the original carries the request, and with it what a student wrote
        raise _condition(error, model, provider) from None


def _condition(error: Exception, model: str, provider: Provider) -> AssayError:
    from langchain_core.exceptions import ContextOverflowError, ModelConnectionError, ModelTimeoutError

    status, overflow = _status(error), isinstance(error, ContextOverflowError)
    if overflow or (status is not None and status >= 400):
        headers = getattr(getattr(error, "response", None), "headers", None)
        return refusal(model, provider, status or 400, headers, _body(error), overflow=overflow)
    if status is not None:
        # an error in the middle of a reply that had begun well: some of it was written
        return ModelUnavailable(f"{model} broke off its reply{_said(_body(error))}.", in_doubt=True)
    if isinstance(error, (ModelTimeoutError, TimeoutError)):
        return ModelUnavailable(f"{model} did not answer in time.", in_doubt=True)
    if isinstance(error, (ModelConnectionError, OSError)) or _is_transport(error):
        return ModelUnavailable(f"{model}: no connection to its server.", in_doubt=not _never_sent(error))
    return ModelRefused(f"{model}: the call failed in its client ({type(error).__name__}, {_place(error)}).")


def _place(error: Exception) -> str:
    *_, frame = traceback.extract_tb(error.__traceback__)
    return f"{Path(frame.filename).name}:{frame.lineno}"


def _status(error: Exception) -> int | None:
    """The HTTP status, as the clients of most providers carry it."""
    response = getattr(error, "response", None)
    for stated in (getattr(error, "status_code", None), getattr(response, "status_code", None)):
        if isinstance(stated, int):
            return stated
    return None


def _body(error: Exception) -> object:
    """The parsed body, as the clients of most providers carry it; the error's words where they do not."""
    body = getattr(error, "body", None)
    return body if isinstance(body, Mapping) else {"message": str(error)}


def error_of(body: object) -> Mapping[str, Any]:
    """The error that a body states, as a mapping; servers wrap it in `error` or not, or state a text."""
    inner = body.get("error", body) if isinstance(body, Mapping) else body
    return inner if isinstance(inner, Mapping) else {"message": inner}


def _said(body: object) -> str:
    """The provider's code, type and parameter: fixed words of its own, unlike its message."""
    inner = error_of(body)
    words = [str(inner[name]) for name in ("type", "code", "param") if _is_word(inner.get(name))]
    return "".join(f", {word}" for word in dict.fromkeys(words))


def _is_overflow(body: object) -> bool:
    # servers that speak OpenAI's protocol agree on no code for it
    return _OVERFLOW.search(f"{error_of(body).get('message')} {_said(body)}") is not None


def _is_word(value: Any) -> bool:
    return (
        isinstance(value, str) and 0 < len(value) <= 60 and value.replace("_", "").replace(".", "").isalnum()
    )


def _hint(body: object) -> str:
    if any(word in _said(body) for word in ("response_format", "output_config", "output_format")):
        return " If it takes no JSON Schema, turn structured_output off in the settings."
    return ""


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The wait that the provider states: milliseconds, seconds or a date; `None` where it states none."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        seconds = _seconds(headers.get(name, ""), unit)
        if seconds is not None and seconds >= 0:
            return min(seconds, MAX_RETRY_AFTER_SECONDS)
    return None


def _seconds(stated: str, unit: float) -> float | None:
    try:
        return float(stated) * unit
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(stated)
    except ValueError:
        return None
    # a date without a zone is in UTC; so are all that HTTP allows
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _is_transport(error: BaseException) -> bool:
    return "TransportError" in _kinds(error)


def _never_sent(error: BaseException) -> bool:
    """Whether no byte of the call left: the connection was never made."""
    cause: BaseException | None = error
    while cause is not None:
        if {"ConnectError", "ConnectTimeout", "ConnectionRefusedError"} & _kinds(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _kinds(error: BaseException) -> set[str]:
    # by name: clients bring httpx, or its successor with the same names
    return {each.__name__ for each in type(error).__mro__}
