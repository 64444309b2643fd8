"""One call to a model: the request, the reply and what it used."""

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from domain.documents import encode
from domain.errors import ModelRefused, UnknownModel
from domain.exam import Question
from domain.identity import ClientStep, LogicalStep

if TYPE_CHECKING:
    from domain.diagnosis import Case

#: the model that comes along: rules and arithmetic, no key
EMBEDDED_MODEL = "local"
PROVIDER_SEPARATOR = ":"
#: what a reply may have at most where the request does not say
DEFAULT_MAX_TOKENS = 2_000


@dataclass(frozen=True)
class Usage:
    """What a call used, in tokens as the model counts them; `tokens_cached` are part of `tokens_in`."""

    tokens_in: int
    tokens_out: int
    tokens_cached: int = 0


class FinishReason(StrEnum):
    """Why a model stopped writing."""

    STOP = "stop"
    #: the limit of tokens came first: the text is cut, in the middle of JSON as often as not
    LENGTH = "length"
    #: the provider withheld the reply
    FILTERED = "filtered"


@dataclass(frozen=True)
class Message:
    """One message to a model."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Payer:
    """Whose money a call spends: the scopes of the ledger that it counts against; empty where none."""

    tenant_id: str = ""
    batch_id: str = ""
    api_key_id: str = ""
    profile: str = ""


@dataclass(frozen=True)
class Fence:
    """The attempt that may dispatch a call: an older epoch of its thread is refused (X14)."""

    thread_id: str
    epoch: int


@dataclass(frozen=True)
class Chat:
    """A chat in OpenAI's protocol, as an outside caller put it: passed on, not understood.

    `parameters` are all others than `model`, `messages`, the limit of tokens, those of streaming and
    Assay's own.
    """

    messages: tuple[Mapping[str, Any], ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    #: names a conversation of the tenant; empty: none
    session_id: str = ""
    #: what a turn does while another one of its conversation is under way
    when_busy: Literal["wait", "refuse"] = "wait"

    @cached_property
    def size_bytes(self) -> int:
        """The bytes of all that is sent, the tools included; several steps of a call count by them."""
        return len(json.dumps([*self.messages, self.parameters], ensure_ascii=False).encode())


@dataclass(frozen=True)
class Patience:
    """How long a call may wait, from the moment of its arrival on, for a limit or an upstream (L10)."""

    wait_on_rate_limit: bool = False
    max_wait_timeout_s: float = 60.0
    retry_budget_s: float = 90.0


IMPATIENT = Patience()
#: an agent has time; what is left after it is Temporal's to retry
AGENT_PATIENCE = Patience(wait_on_rate_limit=True)

#: hears the `choices` of one chunk of a streamed reply, as OpenAI's protocol has them
OnChunk = Callable[[Sequence[Mapping[str, Any]]], Awaitable[None]]


@dataclass(frozen=True)
class CompletionRequest:
    """A call to a model by name: an answer to grade, a batch of logs to diagnose, or an outside chat.

    To grade, the material stands beside the messages: the embedded model reads `question` and `answer` as
    they are, an upstream for large models sends `messages` and asks for `schema`. `answer` is student text:
    data, never instruction. To diagnose, it is `case`. A chat has `chat` and none of these.
    """

    step: LogicalStep | ClientStep
    call_number: int
    model: str
    question: Question | None = None
    answer: str = ""
    case: "Case | None" = None
    #: quotes of the reply before that do not stand in the answer, by criterion id
    missing_quotes: dict[str, str] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    #: JSON Schema of the reply
    schema: Mapping[str, Any] = field(default_factory=dict)
    #: name and version of the prompt, such as `essay@1`
    template: str = ""
    max_tokens: int = DEFAULT_MAX_TOKENS
    payer: Payer = Payer()
    fence: Fence | None = None
    trace_id: str = ""
    chat: Chat | None = None
    patience: Patience = AGENT_PATIENCE
    #: another request under the same key is refused instead of being a new call (O10)
    refuse_other: bool = False
    #: a call under way elsewhere is refused instead of waited for
    refuse_underway: bool = False

    @property
    def key(self) -> str:
        """The idempotency key of this call."""
        return self.step.call(self.call_number)

    def request_hash(self) -> str:
        """The SHA-256, in hex, of what the reply depends on; not of rendered text, time or nonce (L6)."""
        if self.chat is not None:
            content = {"messages": self.chat.messages, **self.chat.parameters}
            content |= {"model": self.model, "max_tokens": self.max_tokens, "session": self.chat.session_id}
            return _digest(content)
        assert isinstance(self.step, LogicalStep)  # only a chat is an outside caller's
        content = {
            "template": self.template,
            **self._material(),
            "reader": self.step.reader,
            "model": self.model,
            "max_tokens": self.max_tokens,
        }
        return _digest(content)

    def _material(self) -> dict[str, str]:
        """What the reply is about, by digests."""
        if self.case is not None:
            return {"case": hashlib.sha256(encode(self.case)).hexdigest()}
        answer = hashlib.sha256(self.answer.encode()).hexdigest()
        return {"rubric": self.graded().rubric_hash(), "input": answer}

    def graded(self) -> Question:
        """The question whose answer is to be graded; raises `ModelRefused` for a chat."""
        if self.question is None:
            raise ModelRefused(f"{self.model} marks answers of exams; it does not chat.", field="model")
        return self.question


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ModelNames:
    """The models that can be asked for: some by name, and any name of a provider, as `provider:name`."""

    names: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    #: providers that could be there, and what each is missing
    absent: Mapping[str, str] = field(default_factory=dict)
    #: those of the names that mark answers and refuse a chat
    graders: frozenset[str] = frozenset()

    @property
    def chatting(self) -> tuple[str, ...]:
        """The names that can be asked in a chat; any name of a provider can."""
        return tuple(name for name in self.names if name not in self.graders)

    def check(self, name: str) -> None:
        """Raise `UnknownModel` with those that are known, unless something serves the name."""
        provider, _, rest = name.partition(PROVIDER_SEPARATOR)
        if name in self.names or (provider in self.providers and rest):
            return
        reason = f": {self.absent[provider]}" if rest and provider in self.absent else ""
        raise UnknownModel(f"model: {name!r} is not known here{reason}; known: {self}.", field="model")

    def __str__(self) -> str:
        providers = (f"{each}{PROVIDER_SEPARATOR}…" for each in sorted(self.providers))
        return ", ".join((*sorted(self.names), *providers)) or "none"


@dataclass(frozen=True)
class CompletionReply:
    """The model's text and its cost in tokens; `advisory` when no mark may rest on it alone."""

    text: str
    usage: Usage
    model: str
    advisory: bool = False
    finish_reason: FinishReason = FinishReason.STOP
    #: the upstream counted nothing that can be believed: counted here by bytes, never fewer than there were
    usage_estimated: bool = field(default=False, compare=False)
    #: what the ledger has committed for it
    cost_nanodollars: int = 0
    #: the reply to a chat: the `choices` of OpenAI's protocol as JSON; `text` is the first one's
    choices: str = ""
