"""One call to a model: the request, the reply and what it used."""

from dataclasses import dataclass, field

from domain.exam import Question
from domain.identity import LogicalStep


@dataclass(frozen=True)
class Usage:
    """What a call used, in tokens as the model counts them."""

    tokens_in: int
    tokens_out: int


@dataclass(frozen=True)
class CompletionRequest:
    """A question to grade and an answer to grade, put to a model by name.

    The material is structured: an upstream for large models renders it to messages, the embedded
    model reads it as it is. `answer` is student text: data, never instruction.
    """

    step: LogicalStep
    call_number: int
    model: str
    question: Question
    answer: str
    #: quotes of the reply before that do not stand in the answer, by criterion id
    missing_quotes: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The idempotency key of this call."""
        return self.step.call(self.call_number)


@dataclass(frozen=True)
class CompletionReply:
    """The model's text and its cost in tokens; `advisory` when no mark may rest on it alone."""

    text: str
    usage: Usage
    model: str
    advisory: bool = False
