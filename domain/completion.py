"""One call to a model: the request, the reply and what it used."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from domain.errors import UnknownModel
from domain.exam import Question
from domain.identity import LogicalStep

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
class CompletionRequest:
    """A question to grade and an answer to grade, put to a model by name.

    The material stands beside the messages: the embedded model reads `question` and `answer` as they
    are, an upstream for large models sends `messages` and asks for `schema`. `answer` is student text:
    data, never instruction.
    """

    step: LogicalStep
    call_number: int
    model: str
    question: Question
    answer: str
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

    @property
    def key(self) -> str:
        """The idempotency key of this call."""
        return self.step.call(self.call_number)

    def request_hash(self) -> str:
        """The SHA-256, in hex, of what the reply depends on; not of rendered text, time or nonce (L6)."""
        content = {
            "template": self.template,
            "rubric": self.question.rubric_hash(),
            "input": hashlib.sha256(self.answer.encode()).hexdigest(),
            "reader": self.step.reader,
            "model": self.model,
            "max_tokens": self.max_tokens,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ModelNames:
    """The models that can be asked for: some by name, and any name of a provider, as `provider:name`."""

    names: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    #: providers that could be there, and what each is missing
    absent: Mapping[str, str] = field(default_factory=dict)

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
    #: what the ledger has committed for it
    cost_nanodollars: int = 0
