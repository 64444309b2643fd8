"""Servers that speak OpenAI's protocol: a thin client, which passes on what it need not understand.

Nothing is tried twice: that is the caller's decision, who pays for it.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from domain.completion import CompletionReply, CompletionRequest, OnChunk
from domain.errors import AssayError, ModelRefused, ModelUnavailable
from gateway.events import Event, EventReader, TooManyEvents
from gateway.providers import Provider
from gateway.refusals import error_of, refusal
from gateway.replies import (
    Gathering,
    are_choices,
    as_chunk,
    estimated_usage,
    from_json,
    reason_of,
    stated_usage,
    text_of,
    to_json,
)

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

DEFAULT_TIMEOUT_SECONDS = 120.0
#: to have a connection, a free one or a new one
CONNECT_SECONDS = 5.0
#: to one server at once; who asks may limit it further
MAX_CONNECTIONS = 512
#: shorter than the five seconds after which the most common servers close an idle connection: a call on one
#: that closes at that moment would be in doubt
KEEP_ALIVE_SECONDS = 4.0
#: of a whole reply, and of all events of a streamed one: each token is an event there
MAX_REPLY_BYTES, MAX_STREAM_BYTES = 16 * 1024 * 1024, 256 * 1024 * 1024
#: after the last event, for the end of the response: a connection is used again only after it
_END_SECONDS = 0.05
_MAX_ERROR_BYTES = 64 * 1024
#: those are set here, whatever a chat's parameters say
_OURS = {"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens"}


class CompatibleModel:
    """The models of one server, over one pool of connections."""

    def __init__(
        self,
        provider: Provider,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        temperature: float | None = None,
    ) -> None:
        assert provider.url is not None  # only such providers speak the protocol
        self._provider = provider
        self._url = f"{provider.url.rstrip('/')}/chat/completions"
        self._timeout_seconds = timeout_seconds
        self._temperature = temperature
        self._headers = {"Content-Type": "application/json", "User-Agent": "assay"}
        if provider.api_key:
            self._headers["Authorization"] = f"Bearer {provider.api_key}"
        self._opened: ClientSession | None = None

    async def complete(self, request: CompletionRequest) -> CompletionReply:
        """The reply; raises `ModelUnavailable`, `UnknownModel`, `ModelRefused` or `PromptTooLong`."""
        sent = self._body(request)
        async with self._answer(request.model, sent) as response:
            return self._whole_reply(request, sent, await self._document(request.model, response))

    async def stream(self, request: CompletionRequest, on_chunk: OnChunk) -> CompletionReply:
        """As `complete`, told chunk by chunk; a reply that breaks off is in doubt."""
        sent = self._body(request, stream=True, stream_options={"include_usage": True})
        async with self._answer(request.model, sent) as response:
            if response.content_type == "application/json":
                # a server that does not stream
                document = await self._document(request.model, response)
                reply = self._whole_reply(request, sent, document)
                await on_chunk(as_chunk(document["choices"]))
                return reply
            return await self._streamed_reply(request, sent, response, on_chunk)

    async def close(self) -> None:
        """Close the connections."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close()

    # --- what is asked ---------------------------------------------------------------------------------

    def _body(self, request: CompletionRequest, **streaming: Any) -> bytes:
        asked = self._chat(request) if request.chat is not None else self._marking(request)
        asked["model"] = self._provider.model_name(request.model)
        asked[self._provider.limit_name] = request.max_tokens
        return to_json(asked | streaming).encode()

    def _chat(self, request: CompletionRequest) -> dict[str, Any]:
        assert request.chat is not None
        passed = {name: value for name, value in request.chat.parameters.items() if name not in _OURS}
        return {"messages": request.chat.messages, **passed}

    def _marking(self, request: CompletionRequest) -> dict[str, Any]:
        asked: dict[str, Any] = {
            "messages": [{"role": each.role, "content": each.content} for each in request.messages]
        }
        if self._temperature is not None:
            asked["temperature"] = self._temperature
        if request.schema and self._provider.structured_output:
            asked["response_format"] = {"type": "json_schema", "json_schema": _named(request.schema)}
        return asked

    # --- the connection --------------------------------------------------------------------------------

    @asynccontextmanager
    async def _answer(self, model: str, body: bytes) -> "AsyncIterator[ClientResponse]":
        """The server's answer, if it is none of refusal."""
        session = await self._session()
        posted = session.post(self._url, data=body, headers=self._headers, allow_redirects=False)
        with _told(model):
            async with posted as response:
                if response.status >= 300:
                    error = await _error_body(response)
                    raise refusal(model, self._provider, response.status, response.headers, error)
                yield response

    async def _session(self) -> "ClientSession":
        if self._opened is None:
            # it takes a fifth of a second
            await asyncio.to_thread(import_module, "aiohttp")
        if self._opened is None:
            self._opened = _open_session(self._url, self._timeout_seconds)
        return self._opened

    async def _document(self, model: str, response: "ClientResponse") -> Mapping[str, Any]:
        text = await _read(model, response, MAX_REPLY_BYTES)
        with suppress(ValueError):
            if isinstance(document := from_json(text), Mapping):
                return document
        if response.content_type == "text/html":
            raise ModelRefused(f"{model}: its server answered with a page; is its address one up to `/v1`?")
        raise _broken_off(model, "answered something that is no JSON")

    # --- what came -------------------------------------------------------------------------------------

    def _whole_reply(
        self, request: CompletionRequest, sent: bytes, document: Mapping[str, Any]
    ) -> CompletionReply:
        if document.get("error") and not document.get("choices"):
            raise self._stated_error(request.model, document)
        choices = document.get("choices")
        if not are_choices(choices):
            raise _broken_off(request.model, "answered without a choice")
        return self._reply(request, sent, choices, document.get("usage"))

    async def _streamed_reply(
        self, request: CompletionRequest, sent: bytes, response: "ClientResponse", on_chunk: OnChunk
    ) -> CompletionReply:
        heard = _Heard(request.model)
        try:
            with _told(request.model):
                await self._hear(heard, response, on_chunk)
        except ModelUnavailable:
            # what is missing is the count of its tokens at most
            if not heard.gathering.ended:
                raise
        if not (choices := heard.gathering.choices()):
            raise _broken_off(request.model, "ended its reply before it began")
        return self._reply(request, sent, choices, heard.usage)

    def _reply(
        self, request: CompletionRequest, sent: bytes, choices: Sequence[Mapping[str, Any]], stated: object
    ) -> CompletionReply:
        wrote = any(each["message"].get(name) for each in choices for name in ("content", "tool_calls"))
        counted = stated_usage(stated, wrote=wrote)
        written = to_json(choices) if request.chat is not None or counted is None else ""
        return CompletionReply(
            text=text_of(choices),
            usage=counted or estimated_usage(sent, written, most_out=request.max_tokens * len(choices)),
            model=request.model,
            advisory=self._provider.advisory,
            finish_reason=reason_of(choices),
            usage_estimated=counted is None,
            choices=written if request.chat is not None else "",
        )

    async def _hear(self, heard: "_Heard", response: "ClientResponse", on_chunk: OnChunk) -> None:
        reader = EventReader(MAX_STREAM_BYTES)
        try:
            async for piece in response.content.iter_any():
                await self._tell(heard, reader.feed(piece), on_chunk)
                if heard.done:
                    return await _to_the_end(response)
        except TooManyEvents:
            raise _broken_off(heard.model, "answered with more than a reply can have") from None
        await self._tell(heard, reader.end(), on_chunk)
        if not heard.done and not heard.gathering.ended:
            raise _broken_off(heard.model, "broke off its reply")
        return None

    async def _tell(self, heard: "_Heard", events: Iterable[Event], on_chunk: OnChunk) -> None:
        for event in events:
            if (document := heard.document(event)) is None:
                continue
            if event.name == "error" or document.get("error"):
                if heard.gathering.began:
                    raise _broken_off(heard.model, "broke off its reply with an error")
                raise self._stated_error(heard.model, document)
            if choices := heard.choices(document):
                await on_chunk(choices)

    def _stated_error(self, model: str, document: Mapping[str, Any]) -> AssayError:
        """An error where a reply should be; some servers give its status as the code."""
        code = str(error_of(document).get("code"))
        status = int(code) if re.fullmatch("[45][0-9]{2}", code) else 500
        return refusal(model, self._provider, status, None, document)


def _open_session(url: str, timeout_seconds: float) -> "ClientSession":
    import aiohttp

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS, keepalive_timeout=KEEP_ALIVE_SECONDS),
        timeout=aiohttp.ClientTimeout(total=timeout_seconds, connect=CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        proxy=_proxy(url),
    )


def _proxy(url: str) -> str | None:
    """The proxy that the environment names; read once, since a call would pay for reading it each time."""
    with suppress(ValueError):  # what is no address is told with the first call
        parts = urlsplit(url)
        return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)
    return None


@contextmanager
def _told(model: str) -> Iterator[None]:
    """Raise what the connection does as conditions of ours: whether the call had left decides which."""
    import aiohttp

    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        raise ModelUnavailable(f"{model}: no connection to its server.") from None
    except aiohttp.InvalidURL:
        raise ModelRefused(f"{model}: the address of its server is none.") from None
    except TimeoutError:
        raise ModelUnavailable(f"{model} did not answer in time.", in_doubt=True) from None
    except (aiohttp.ClientError, OSError, RecursionError):  # the last one for what is nested without end
        raise _broken_off(model, "broke off its answer") from None


def _broken_off(model: str, how: str) -> ModelUnavailable:
    """It had left, and may be charged for."""
    return ModelUnavailable(f"{model} {how}.", in_doubt=True)


async def _read(model: str, response: "ClientResponse", most_bytes: int) -> bytes:
    pieces, size = [], 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > most_bytes:
            raise _broken_off(model, f"answered with more than {most_bytes} bytes")
    return b"".join(pieces)


async def _error_body(response: "ClientResponse") -> object:
    """The body of a refusal as far as it can be read: the status says enough without it."""
    import aiohttp

    with suppress(aiohttp.ClientError, OSError):
        text = b""
        async for piece in response.content.iter_any():
            text += piece
            if len(text) > _MAX_ERROR_BYTES:
                break
        with suppress(ValueError):
            return from_json(text)
        return text.decode(errors="replace")
    return None


async def _to_the_end(response: "ClientResponse") -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(_END_SECONDS):
            await response.content.readany()


class _Heard:
    """What was heard of a streamed reply."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.gathering = Gathering()
        self.usage: object = None
        self.done = False

    def document(self, event: Event) -> Mapping[str, Any] | None:
        """The event's document; `None` for the one that says that the reply is done."""
        if self.done or event.data.strip() == b"[DONE]":
            self.done = True
            return None
        with suppress(ValueError):
            if isinstance(document := from_json(event.data), Mapping):
                return document
        raise _broken_off(self.model, "broke off in the middle of an event")

    def choices(self, document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The choices of a chunk, gathered."""
        self.usage = document.get("usage") or self.usage
        listed = document.get("choices")
        choices = [each for each in listed if isinstance(each, Mapping)] if isinstance(listed, list) else []
        self.gathering.add(choices)
        return choices


def _named(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema as the protocol has it: its title is its name."""
    rest = {name: value for name, value in schema.items() if name not in ("title", "description")}
    described = {"description": schema["description"]} if "description" in schema else {}
    return {"name": schema.get("title", "reply"), **described, "strict": True, "schema": rest}
