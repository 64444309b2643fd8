"""What a diagnosis' thread remembers, what its nodes are given, and what a valid state looks like."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

# pydantic reads no TypedDict of `typing` before Python 3.12
from typing_extensions import TypedDict

from agents.boundary import BatchSeen, Boundary, Heard, merge_events
from agents.diagnosis.evidence import EvidenceCheck
from agents.diagnosis.tools import FileNames, Looking
from domain.completion import CompletionReply, Fence
from domain.diagnosis import Diagnosis, DiagnosisRun
from domain.documents import from_plain
from domain.errors import CorruptCheckpoint, DocumentInvalid
from domain.gateway import Completions
from domain.identity import LogicalStep
from domain.logs import LogLines

#: the channel that only a finished thread has
FINISHED = "diagnosis"


@dataclass(frozen=True)
class Limits:
    """How much one diagnosis may ask of a model."""

    #: what one prompt has at most, as estimated
    prompt_tokens: int = 24_000
    #: segments of a summary that is longer; the anomalies beyond them have the lowest scores
    segments: int = 6
    #: calls that may ask for lines
    investigations: int = 4
    #: after so many tokens, in and out, nothing more is looked up
    tokens: int = 150_000
    #: what a reply may have
    reply_tokens: int = 6_000


class Spent(TypedDict):
    """What the thread's calls came to."""

    tokens_in: int
    tokens_out: int
    cost_nanodollars: int


class DiagnosisState(TypedDict, total=False):
    """Ids, small answers and what to look at; log lines and the summary stay outside.

    Lines that a model has asked for are read again after a crash: the same look finds the same.
    """

    batch_id: str
    generation: int
    signature: str
    model: str
    #: how many segments the summary was cut into; 0 where one prompt has it all
    segments: int
    #: those that were surveyed
    surveyed: int
    notes: list[dict[str, Any]]
    looks: list[dict[str, Any]]
    #: calls made, by purpose: the number of the next one follows
    calls: dict[str, int]
    #: visits that asked for lines
    turns: int
    draft: dict[str, Any]
    #: quotes of the draft that were not there
    missing: list[str]
    retried: bool
    refused: int
    findings: list[dict[str, Any]]
    spent: Spent
    answered_by: str
    #: by generation and event id
    external_events: Annotated[dict[str, Heard], merge_events]
    batch: BatchSeen
    diagnosis: dict[str, Any]


@dataclass(frozen=True)
class Context:
    """What the nodes of one run may use, none of it stored with the thread."""

    run: DiagnosisRun
    models: Completions
    lines: LogLines = field(repr=False)
    limits: Limits
    on_delta: Callable[[str], None]
    #: where the run hears from outside
    boundary: Boundary = field(default_factory=Boundary)

    @cached_property
    def names(self) -> FileNames:
        """The logs' short names in prompts."""
        return FileNames(self.run.summary, self.run.logs)

    @cached_property
    def looking(self) -> Looking:
        """Looks at the lines of this batch's logs."""
        return Looking(self.lines, {each.file_id: each for each in self.run.logs}, self.names)

    @cached_property
    def check(self) -> EvidenceCheck:
        """Holds evidence against the lines."""
        return EvidenceCheck(self.run.summary, self.looking)

    @property
    def fence(self) -> Fence:
        """The attempt on whose behalf calls are made."""
        return Fence(self.run.thread_id, self.run.epoch)

    def step(self, purpose: str) -> LogicalStep:
        """What the model calls for that purpose are for."""
        return LogicalStep(self.run.batch_id, self.run.generation, "diagnosis", purpose, "first")


def initial_state(run: DiagnosisRun) -> DiagnosisState:
    """The input of a thread that starts afresh."""
    return {
        "batch_id": run.batch_id,
        "generation": run.generation,
        "signature": run.summary.signature,
        "model": run.model,
    }


def with_reply(state: DiagnosisState, purpose: str, reply: CompletionReply) -> DiagnosisState:
    """The state with one more call in its counts."""
    spent = state.get("spent", Spent(tokens_in=0, tokens_out=0, cost_nanodollars=0))
    calls = state.get("calls", {})
    return {
        **state,
        "calls": {**calls, purpose: calls.get(purpose, 0) + 1},
        "spent": Spent(
            tokens_in=spent["tokens_in"] + reply.usage.tokens_in,
            tokens_out=spent["tokens_out"] + reply.usage.tokens_out,
            cost_nanodollars=spent["cost_nanodollars"] + reply.cost_nanodollars,
        ),
        "answered_by": reply.model,
    }


def tokens_spent(state: DiagnosisState) -> int:
    """All tokens of the thread's calls, in and out."""
    spent = state.get("spent")
    return spent["tokens_in"] + spent["tokens_out"] if spent else 0


def diagnosis_of(values: Mapping[str, Any]) -> Diagnosis:
    """What a finished thread has come to."""
    return from_plain(Diagnosis, values[FINISHED])


_ADAPTER = TypeAdapter(DiagnosisState)


def check_state(values: Mapping[str, Any], run: DiagnosisRun) -> None:
    """Raise `CorruptCheckpoint` unless the stored values are a state of this run's graph."""
    for name, expected in initial_state(run).items():
        if values.get(name) != expected:
            raise CorruptCheckpoint(f"{name}: {values.get(name)!r} instead of {expected!r}.")
    try:
        _ADAPTER.validate_python(dict(values), strict=True)
        if FINISHED in values:
            diagnosis_of(values)
    except (ValidationError, DocumentInvalid) as error:
        where = error.errors()[0]["loc"] if isinstance(error, ValidationError) else error.field
        raise CorruptCheckpoint(f"{where}: not as it was written.") from None
