"""A simulated upstream: speaks OpenAI's protocol, thinks nothing and fails to order.

For tests and benchmarks only (`assay simulate-upstream`). It is HTTP/1.1 on a bare protocol, as it must
never be what limits a benchmark: a web framework alone costs more than a whole call here.
"""

import asyncio
import hashlib
import json
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated, Any, Literal, Self, cast
from urllib.parse import unquote

import httptools
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from domain.errors import InvalidInput

MODEL = "simulated"
MAX_BODY_BYTES = 32 * 2**20
#: requests that a client may send ahead on one connection
_MAX_PIPELINED = 64
#: different bodies that are counted apart; those beyond are counted together
_MAX_BODIES = 100_000
_ABSURD_WORDS = 10**15
_WORD = "word "


class Fault(StrEnum):
    """What can go wrong with one call."""

    NONE = "none"
    #: 429 with `Retry-After` and `retry-after-ms`
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    UNAVAILABLE = "unavailable"
    #: reset when the request is here: nothing was done
    CUT_BEFORE = "cut_before"
    #: reset when the work is done: the reply is lost
    CUT_AFTER = "cut_after"
    #: reset in the middle of the reply
    TRUNCATED = "truncated"
    #: a stream that ends in order, but without its last chunks; a plain reply is whole
    ENDS_EARLY = "ends_early"
    #: nothing comes, until the client has gone or `hang_seconds` are over
    HANGING = "hanging"
    INVALID_JSON = "invalid_json"
    USAGE_MISSING = "usage_missing"
    USAGE_NEGATIVE = "usage_negative"
    USAGE_ABSURD = "usage_absurd"


_STATUS = {
    Fault.RATE_LIMITED: HTTPStatus.TOO_MANY_REQUESTS,
    Fault.SERVER_ERROR: HTTPStatus.INTERNAL_SERVER_ERROR,
    Fault.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Latency(_Part):
    """How long a call waits for its first token.

    `fixed`: `seconds`; `uniform`: from `seconds` to `seconds + spread`; `lognormal`: the median is `seconds`,
    and `spread` the deviation of the logarithm.
    """

    shape: Literal["fixed", "uniform", "lognormal"] = "fixed"
    seconds: float = Field(0.0, ge=0, le=3600)
    spread: float = Field(0.0, ge=0, le=3600)

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `0.05`, `fixed:0.05`, `uniform:0.1,0.4` or `lognormal:0.2,0.5`; raises `ValueError`."""
        shape, _, numbers = text.rpartition(":")
        seconds, _, spread = numbers.partition(",")
        return cls.model_validate({"shape": shape or "fixed", "seconds": seconds, "spread": spread or 0})

    def draw(self, chance: random.Random) -> float:
        """Seconds for one call, an hour at most."""
        if self.shape == "uniform":
            return self.seconds + self.spread * chance.random()
        if self.shape == "lognormal":
            return min(self.seconds * chance.lognormvariate(0, self.spread), 3600)
        return self.seconds


class Behaviour(_Part):
    """How calls are answered; `faults` has the share of each, `sequence` the next calls', in order."""

    latency: Latency = Latency()
    #: of a reply, unless the call asks for fewer
    tokens: int = Field(16, ge=1, le=100_000)
    #: none: a reply is written at once
    tokens_per_second: float | None = Field(None, gt=0)
    faults: dict[Fault, Annotated[float, Field(ge=0, le=1)]] = {}
    sequence: tuple[Fault, ...] = ()
    retry_after_seconds: float = Field(1.0, ge=0, le=3600)
    hang_seconds: float = Field(600.0, gt=0, le=3600)
    #: said instead of numbered words
    text: str | None = None


def stated_behaviour(
    *, latency: str, tokens: int, tokens_per_second: float | None, faults: Sequence[str]
) -> Behaviour:
    """The behaviour that options of the command line state; raises `InvalidInput`."""
    try:
        shares = dict(each.split("=", 1) for each in faults)
        return Behaviour.model_validate(
            {
                "latency": Latency.parse(latency),
                "tokens": tokens,
                "tokens_per_second": tokens_per_second,
                "faults": shares,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(each) for each in first["loc"])
        raise InvalidInput(f"{where}: {first['msg']}; faults: {', '.join(Fault)}.", field=where) from error
    except ValueError as error:
        raise InvalidInput("fault: write FAULT=SHARE, such as rate_limited=0.1.", field="fault") from error


@dataclass
class Statistics:
    """What the upstream saw, since it started or since they were cleared."""

    calls: int = 0
    #: calls whose work was done, whatever became of the reply
    worked: int = 0
    #: replies that were handed to the network whole
    answered: int = 0
    #: clients that had gone before they were answered
    abandoned: int = 0
    underway: int = 0
    most_at_once: int = 0
    paths: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    bodies: Counter[str] = field(default_factory=Counter)

    def began(self, path: str, model: str, body: bytes, fault: Fault) -> None:
        """Count a call that has arrived."""
        self.calls += 1
        self.underway += 1
        self.most_at_once = max(self.most_at_once, self.underway)
        self.paths[path] += 1
        self.faults[fault] += 1
        digest = hashlib.sha256(body).hexdigest()
        self.bodies[digest if digest in self.bodies or len(self.bodies) < _MAX_BODIES else "others"] += 1
        self.models[model if model in self.models or len(self.models) < _MAX_BODIES else "others"] += 1

    def cleared(self) -> "Statistics":
        """From nought; what is under way stays so."""
        return Statistics(underway=self.underway, most_at_once=self.underway)


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    body: bytes


@dataclass(frozen=True)
class _Call:
    """A chat that was asked for, and what becomes of it."""

    number: int
    body: Mapping[str, Any]
    behaviour: Behaviour
    fault: Fault

    @property
    def streamed(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def model(self) -> str:
        return str(self.body.get("model", MODEL))


class SimulatedUpstream:
    """Answers requests; its behaviour may change while it runs, for all models or for one."""

    def __init__(self, behaviour: Behaviour | None = None, *, seed: int = 0) -> None:
        self.statistics = Statistics()
        self.url = ""
        self._chance = random.Random(seed)  # noqa: S311  # a simulation, to be repeated
        self._behaviours: dict[str, Behaviour] = {}
        self._sequences: dict[str, Iterator[Fault]] = {}
        self._numbers = 0
        self.behave(behaviour or Behaviour())

    def behave(self, behaviour: Behaviour, *, model: str = "") -> None:
        """Answer so from the next call on: to that model, or to all without a behaviour of their own."""
        self._behaviours[model] = behaviour
        self._sequences[model] = iter(behaviour.sequence)

    def call(self, request: _Request) -> _Call:
        """Count a chat and decide what becomes of it; raises `ValueError` for a body that is no chat."""
        body = json.loads(request.body)
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
            raise ValueError("messages: must be a list")  # noqa: TRY004  # the value of a field on the wire
        self._numbers += 1
        name = str(body.get("model", MODEL))
        of_model = name if name in self._behaviours else ""
        behaviour = self._behaviours[of_model]
        fault = next(self._sequences[of_model], None) or self._drawn(behaviour)
        self.statistics.began(request.path, name, request.body, fault)
        return _Call(self._numbers, body, behaviour, fault)

    def _drawn(self, behaviour: Behaviour) -> Fault:
        if not behaviour.faults:
            return Fault.NONE
        left = self._chance.random()
        for fault, share in behaviour.faults.items():
            left -= share
            if left < 0:
                return fault
        return Fault.NONE

    def latency_seconds(self, call: _Call) -> float:
        """How long the call waits for its first token."""
        return call.behaviour.latency.draw(self._chance)

    def controlled(self, request: _Request) -> tuple[HTTPStatus, Any]:
        """The answer to what is no chat: the list of models, and the simulation's own controls."""
        match (request.method, request.path):
            case ("GET", "/v1/models"):
                names = [name for name in self._behaviours if name] or [MODEL]
                rows = [{"id": each, "object": "model", "created": 0, "owned_by": MODEL} for each in names]
                return HTTPStatus.OK, {"object": "list", "data": rows}
            case ("GET", "/simulation/stats"):
                return HTTPStatus.OK, vars(self.statistics)
            case ("DELETE", "/simulation/stats"):
                self.statistics = self.statistics.cleared()
                return HTTPStatus.OK, vars(self.statistics)
            case ("GET", "/simulation/behaviour"):
                shown = {name: each.model_dump(mode="json") for name, each in self._behaviours.items()}
                return HTTPStatus.OK, shown
            case ("PUT", path) if (path + "/").startswith("/simulation/behaviour/"):
                model = unquote(path.removeprefix("/simulation/behaviour").lstrip("/"))
                return self._set_behaviour(model, request.body)
        return HTTPStatus.NOT_FOUND, _error("There is nothing here.", "not_found")

    def _set_behaviour(self, model: str, body: bytes) -> tuple[HTTPStatus, Any]:
        try:
            behaviour = Behaviour.model_validate_json(body)
        except ValidationError as error:
            return HTTPStatus.UNPROCESSABLE_ENTITY, _error(str(error), "invalid_behaviour")
        self.behave(behaviour, model=model)
        return HTTPStatus.OK, behaviour.model_dump(mode="json")

    @asynccontextmanager
    async def serving(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Self]:
        """Serve on the running loop; `url` then says where."""
        connections: set[_Connection] = set()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(self, connections), host, port, backlog=1024)
        name = server.sockets[0].getsockname()
        self.url = f"http://[{name[0]}]:{name[1]}" if ":" in name[0] else f"http://{name[0]}:{name[1]}"
        try:
            yield self
        finally:
            server.close()
            for each in tuple(connections):
                each.reset()
            await server.wait_closed()


# --- replies ---------------------------------------------------------------------------------------


def _error(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": f"Simulated upstream: {message}", "type": code, "param": None, "code": code}}


def _said(call: _Call) -> tuple[dict[str, Any], str, int]:
    """The message of a reply, why it ends and its tokens; calls differ, so that a replay can be told."""
    limit = call.body.get("max_completion_tokens") or call.body.get("max_tokens") or call.behaviour.tokens
    tokens = max(1, min(int(limit), call.behaviour.tokens))
    reason = "length" if tokens < call.behaviour.tokens else "stop"
    message: dict[str, Any] = {"role": "assistant", "content": call.behaviour.text}
    if call.behaviour.text is not None:
        return message, reason, tokens
    if (tool := _chosen_tool(call.body)) is not None:
        arguments = json.dumps(_instance(tool.get("parameters") or {}, tool.get("parameters") or {}))
        function = {"name": tool.get("name"), "arguments": arguments}
        calls = [{"id": f"call_{call.number}", "type": "function", "function": function}]
        return message | {"tool_calls": calls}, "tool_calls", tokens
    message["content"] = _structured(call.body) or f"Simulated reply {call.number}: {_WORD * tokens}".rstrip()
    return message, reason, tokens


def _chosen_tool(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The tool that the caller insists on."""
    choice, tools = body.get("tool_choice"), [each.get("function", {}) for each in body.get("tools") or ()]
    if isinstance(choice, dict):
        name = choice.get("function", {}).get("name")
        return next((each for each in tools if each.get("name") == name), None)
    return tools[0] if choice == "required" and tools else None


def _structured(body: Mapping[str, Any]) -> str:
    """A smallest reply of the schema that the caller asks for, if it asks for one."""
    wanted = body.get("response_format") or {}
    schema = wanted.get("json_schema", {}).get("schema") or {}
    if wanted.get("type") == "json_object":
        return "{}"
    return json.dumps(_instance(schema, schema)) if schema else ""


def _instance(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """A small value that the schema allows, as far as OpenAI's subset of JSON Schema goes."""
    if "$ref" in schema:
        found: Any = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return _instance(found, root)
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return _instance(options[0], root)
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    kind = schema.get("type", "object")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            return {name: _instance(each, root) for name, each in schema.get("properties", {}).items()}
        case "array":
            return [
                _instance(schema.get("items", {}), root) for _ in range(max(1, schema.get("minItems", 1)))
            ]
        case "string":
            return "simulated"
        case "boolean":
            return False
        case "integer" | "number":
            return schema.get("minimum", 0)
    return None


def _usage(call: _Call, tokens: int) -> dict[str, int]:
    counted = sum(len(str(each.get("content", ""))) for each in call.body["messages"]) // 4 + 1
    if call.fault is Fault.USAGE_NEGATIVE:
        counted, tokens = -counted, -tokens
    elif call.fault is Fault.USAGE_ABSURD:
        counted, tokens = _ABSURD_WORDS, _ABSURD_WORDS
    return {"prompt_tokens": counted, "completion_tokens": tokens, "total_tokens": counted + tokens}


def _document(call: _Call, kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    head = {"id": f"chatcmpl-simulated-{call.number}", "object": kind, "created": int(time.time())}
    return {**head, "model": call.model, **content}


def _whole_reply(call: _Call) -> bytes:
    """The body of a plain reply."""
    message, reason, tokens = _said(call)
    choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
    content: dict[str, Any] = {"choices": [choice]}
    if call.fault is not Fault.USAGE_MISSING:
        content["usage"] = _usage(call, tokens)
    body = json.dumps(_document(call, "chat.completion", content)).encode()
    return body[: len(body) // 2] if call.fault is Fault.INVALID_JSON else body


def _streamed_reply(call: _Call) -> list[bytes]:
    """The events of a streamed reply, a token each."""
    message, reason, tokens = _said(call)
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    if "tool_calls" in message:
        deltas.append({"tool_calls": [{"index": 0, **each} for each in message["tool_calls"]]})
    deltas += [{"content": each} for each in _pieces(message["content"] or "")]
    events = [_choice_chunk(call, each, None) for each in deltas] + [_choice_chunk(call, {}, reason)]
    asked = (call.body.get("stream_options") or {}).get("include_usage")
    if asked and call.fault is not Fault.USAGE_MISSING:
        events.append(
            _document(call, "chat.completion.chunk", {"choices": [], "usage": _usage(call, tokens)})
        )
    written = [f"data: {json.dumps(each)}\n\n".encode() for each in events]
    if call.fault is Fault.INVALID_JSON:
        written[len(written) // 2] = b'data: {"choices": [{"delta"\n\n'
    return [*written, b"data: [DONE]\n\n"]


def _pieces(text: str) -> list[str]:
    return [f"{each} " for each in text.split(" ")[:-1]] + text.split(" ")[-1:] if text else []


def _choice_chunk(call: _Call, delta: Mapping[str, Any], reason: str | None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return _document(call, "chat.completion.chunk", {"choices": [choice]})


# --- the wire --------------------------------------------------------------------------------------


class _Connection(asyncio.Protocol):
    """One client's connection: requests are answered one after the other."""

    def __init__(self, upstream: SimulatedUpstream, connections: "set[_Connection]") -> None:
        self._upstream = upstream
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._requests: asyncio.Queue[_Request] = asyncio.Queue(_MAX_PIPELINED)
        self._path = self._body = b""
        self._transport: asyncio.Transport
        self._serving: asyncio.Task[None]

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none by class
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)
        self._serving = asyncio.get_running_loop().create_task(self._serve())

    def connection_lost(self, _: Exception | None) -> None:
        self._connections.discard(self)
        self._serving.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, asyncio.QueueFull):
            self._transport.close()

    # the parser's side

    def on_message_begin(self) -> None:
        self._path = self._body = b""

    def on_url(self, part: bytes) -> None:
        self._path += part

    def on_body(self, part: bytes) -> None:
        self._body += part
        if len(self._body) > MAX_BODY_BYTES:
            self._transport.close()

    def on_message_complete(self) -> None:
        path = self._path.partition(b"?")[0].decode("ascii", "replace")
        self._requests.put_nowait(_Request(self._parser.get_method().decode(), path, self._body))

    # ours

    async def _serve(self) -> None:
        while not self._transport.is_closing():
            await self._answer(await self._requests.get())

    async def _answer(self, request: _Request) -> None:
        if (request.method, request.path) != ("POST", "/v1/chat/completions"):
            status, document = self._upstream.controlled(request)
            self._write(status, json.dumps(document).encode())
            return
        try:
            call = self._upstream.call(request)
        except ValueError as error:
            self._write(HTTPStatus.BAD_REQUEST, json.dumps(_error(str(error), "invalid_request")).encode())
            return
        await self._counted(call)

    async def _counted(self, call: _Call) -> None:
        try:
            await self._chat(call)
        except asyncio.CancelledError:
            self._upstream.statistics.abandoned += 1
            raise
        finally:
            self._upstream.statistics.underway -= 1

    async def _chat(self, call: _Call) -> None:
        if call.fault is Fault.CUT_BEFORE:
            return self.reset()
        if seconds := self._upstream.latency_seconds(call):
            await asyncio.sleep(seconds)
        if (status := _STATUS.get(call.fault)) is not None:
            return self._refuse(call, status)
        if call.fault is Fault.HANGING:
            await asyncio.sleep(call.behaviour.hang_seconds)
            return self.reset()
        self._upstream.statistics.worked += 1
        if call.fault is Fault.CUT_AFTER:
            return self.reset()
        await (self._stream(call) if call.streamed else self._reply(call))
        return None

    def _refuse(self, call: _Call, status: HTTPStatus) -> None:
        headers = ""
        if status is HTTPStatus.TOO_MANY_REQUESTS:
            seconds = call.behaviour.retry_after_seconds
            # whole seconds, as the header has them; the other one is exact
            headers = f"retry-after: {-int(-seconds // 1)}\r\nretry-after-ms: {seconds * 1000:.0f}\r\n"
        document = _error(f"{status.phrase}, as it was told to.", call.fault)
        self._write(status, json.dumps(document).encode(), headers)

    async def _reply(self, call: _Call) -> None:
        body = _whole_reply(call)
        if call.behaviour.tokens_per_second:
            await asyncio.sleep(_said(call)[2] / call.behaviour.tokens_per_second)
        if call.fault is Fault.TRUNCATED:
            self._transport.write(_head(HTTPStatus.OK, len(body)) + body[: len(body) // 2])
            return self._cut()
        self._write(HTTPStatus.OK, body)
        self._upstream.statistics.answered += 1
        return None

    async def _stream(self, call: _Call) -> None:
        events = _streamed_reply(call)
        if call.fault in (Fault.TRUNCATED, Fault.ENDS_EARLY):
            events = events[: len(events) // 2]
        self._transport.write(_STREAM_HEAD)
        if call.behaviour.tokens_per_second:
            for each in events:
                await asyncio.sleep(1 / call.behaviour.tokens_per_second)
                self._transport.write(_chunked(each))
        else:
            self._transport.write(b"".join(map(_chunked, events)))
        if call.fault is Fault.TRUNCATED:
            return self._cut()
        self._transport.write(b"0\r\n\r\n")
        self._upstream.statistics.answered += call.fault is not Fault.ENDS_EARLY
        return None

    def _write(self, status: HTTPStatus, body: bytes, headers: str = "") -> None:
        keep_alive = self._parser.should_keep_alive()
        self._transport.write(_head(status, len(body), headers, keep_alive=keep_alive) + body)
        if not keep_alive:
            self._transport.close()

    def _cut(self) -> None:
        """Close after what was written has left."""
        self._transport.close()

    def reset(self) -> None:
        """Close at once, with a reset instead of an end."""
        with suppress(OSError):
            linger_no_second = struct.pack("ii", 1, 0)
            self._transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, linger_no_second
            )
        self._transport.abort()


_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: assay-simulated-upstream\r\ncontent-type: text/event-stream\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)


def _head(status: HTTPStatus, length: int, headers: str = "", *, keep_alive: bool = True) -> bytes:
    return (
        f"HTTP/1.1 {status} {status.phrase}\r\nserver: assay-simulated-upstream\r\n"
        f"content-type: application/json\r\ncontent-length: {length}\r\n{headers}"
        f"connection: {'keep-alive' if keep_alive else 'close'}\r\n\r\n"
    ).encode()


def _chunked(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)
