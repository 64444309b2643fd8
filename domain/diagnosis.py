"""One batch of logs as a whole: what stands out against the baseline, and what is the matter (B7)."""

from asyncio import Queue
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol, Self

from domain.batch import AgentState
from domain.completion import Payer
from domain.logs import Level, LogFile, Moment, Quote
from domain.states import BatchState

SUMMARY_VERSION = 1
#: anomalies that a summary keeps, by score
TOP_ANOMALIES = 40
#: templates that a summary keeps for the report, by count; those of its anomalies always
TOP_TEMPLATES = 300
#: vehicles that a summary keeps, those with anomalies first
TOP_VEHICLES = 300
#: logs that a summary keeps, those with the most grave lines first
TOP_LOGS = 300
#: vehicles and files that an anomaly names, vehicles that a template counts by; those with most lines first
TOP_PLACES = 20
#: a summary as a document
MAX_SUMMARY_BYTES = 1024 * 1024


class Change(StrEnum):
    """How a template or a signal stands to the baseline."""

    NEW = "new"
    GONE = "gone"
    RATE = "rate"
    #: a rule that speaks for itself, such as a broken limit or a fatal line where there is no baseline
    RULE = "rule"
    UNCHANGED = "unchanged"


@dataclass(frozen=True)
class Anomaly:
    """Something that stands out; `code` is stable: the same for the same template or rule in any batch.

    Rates are lines per thousand lines. `file_ids` and `vehicles` are those with the most of it, at most
    `TOP_PLACES`; `files` and `vehicle_count` count all that it occurs in. `reason` says in a sentence why
    it stands out.
    """

    code: str
    change: Change
    title: str
    score: float
    count: int
    level: Level | None = None
    baseline_count: int = 0
    rate: float = 0.0
    baseline_rate: float = 0.0
    template_id: str = ""
    files: int = 0
    file_ids: tuple[str, ...] = ()
    vehicles: tuple[str, ...] = ()
    first_at: str = ""
    last_at: str = ""
    value: float | None = None
    bound: float | None = None
    unit: str = ""
    quotes: tuple[Quote, ...] = ()
    vehicle_count: int = 0
    reason: str = ""


@dataclass(frozen=True)
class MergedTemplate:
    """A template over all files of a batch."""

    template_id: str
    text: str
    count: int
    files: int
    level: Level | None = None
    change: Change = Change.UNCHANGED
    baseline_count: int = 0
    first_at: str = ""
    last_at: str = ""
    by_vehicle: dict[str, int] = field(default_factory=dict)
    quotes: tuple[Quote, ...] = ()


@dataclass(frozen=True)
class VehicleSummary:
    """One vehicle of a batch; logs without one stand under the empty id."""

    vehicle_id: str
    vin: str
    files: int
    lines: int
    levels: dict[Level, int] = field(default_factory=dict)
    anomaly_codes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileSummary:
    """One log of a batch in figures."""

    file_id: str
    name: str
    vehicle_id: str
    format: str
    lines: int
    coverage: float
    templates: int
    levels: dict[Level, int] = field(default_factory=dict)
    first_at: str = ""
    last_at: str = ""
    incomplete: str = ""


@dataclass(frozen=True)
class Baseline:
    """What a batch is compared with: an earlier batch, by name or by id."""

    batch_id: str
    name: str = ""
    files: int = 0
    lines: int = 0


@dataclass(frozen=True)
class BatchSummary:
    """A batch of logs, gathered; the agent sees this and never a raw log (B7.2)."""

    batch_id: str
    generation: int
    files: int
    lines: int
    parsed_lines: int
    expanded_bytes: int
    baseline: Baseline | None = None
    #: of all templates found; `templates` keeps the largest
    template_count: int = 0
    levels: dict[Level, int] = field(default_factory=dict)
    anomalies: tuple[Anomaly, ...] = ()
    #: of all anomalies found; `anomalies` keeps the `TOP_ANOMALIES`
    anomaly_count: int = 0
    templates: tuple[MergedTemplate, ...] = ()
    vehicles: tuple[VehicleSummary, ...] = ()
    logs: tuple[FileSummary, ...] = ()
    timeline: tuple[Moment, ...] = ()
    first_at: str = ""
    last_at: str = ""
    #: the anomalies that make two batches the same case, as a SHA-256 in hex (B7.3)
    signature: str = ""
    #: of all vehicles; `vehicles` keeps the `TOP_VEHICLES`, `logs` the `TOP_LOGS` of `files`
    vehicle_count: int = 0
    #: logs that were not read to their end
    incomplete_logs: int = 0
    #: parsed lines of templates beyond those that a gathering can follow
    unlisted_lines: int = 0
    version: int = SUMMARY_VERSION

    @property
    def coverage(self) -> float:
        """The share of the lines that were parsed."""
        return self.parsed_lines / self.lines if self.lines else 1.0


class Verdict(StrEnum):
    """What a diagnosis comes to."""

    ROOT_CAUSE = "root_cause"
    INSUFFICIENT_EVIDENCE = "insufficient_evidence"
    #: nothing stands out
    UNREMARKABLE = "unremarkable"


class RiskLevel(StrEnum):
    """How grave it is; `Diagnosis.risk_rule` says by which rule."""

    NONE = "none"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class Hazard(StrEnum):
    """What a cause may lead to, gravest first."""

    #: a vehicle that moves is not under control any more
    LOSS_OF_CONTROL = "loss_of_control"
    #: a vehicle or a device that does not start, or starts what it should not
    UNBOOTABLE = "unbootable"
    #: somebody gets in, or could
    SECURITY = "security"
    LOSS_OF_FUNCTION = "loss_of_function"
    DEGRADED = "degraded"


@dataclass(frozen=True)
class Finding:
    """One cause, with the lines that show it; each quote has been found in its file, at its number."""

    cause_id: str
    title: str
    explanation: str
    #: between 0 and 1
    confidence: float
    anomaly_codes: tuple[str, ...] = ()
    vehicles: tuple[str, ...] = ()
    recommendations: tuple[str, ...] = ()
    evidence: tuple[Quote, ...] = ()
    #: what it may lead to; the risk level follows from it
    hazard: Hazard = Hazard.DEGRADED


@dataclass(frozen=True)
class Diagnosis:
    """The outcome of one diagnosis batch; a claim without checked evidence is none (X30)."""

    verdict: Verdict
    summary: str
    risk_level: RiskLevel
    #: the rule that gave the level, in words
    risk_rule: str
    findings: tuple[Finding, ...] = ()
    recommendations: tuple[str, ...] = ()
    #: anomalies that no finding explains
    unexplained: tuple[str, ...] = ()
    #: claims that were thrown away, as their evidence was not there
    refused_claims: int = 0
    model: str = ""
    #: made by rules, without a large model
    rule_based: bool = False
    #: the diagnosis of an earlier batch with the same signature that this one repeats
    reused_from: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    cost_nanodollars: int = 0


@dataclass(frozen=True)
class DiagnosisRun:
    """One attempt at diagnosing one batch: whose thread, in which epoch, on whose account."""

    thread_id: str
    epoch: int
    batch_id: str
    generation: int
    model: str
    summary: BatchSummary
    logs: Sequence[LogFile]
    payer: Payer
    #: the tenant's: it makes the marks that fence log text off in prompts
    secret: bytes = field(repr=False)
    trace_id: str = ""


@dataclass(frozen=True)
class DiagnosisOutcome:
    """What an agent's run ended with; `restarted` when a corrupt checkpoint was thrown away."""

    diagnosis: Diagnosis
    state: AgentState
    restarted: bool = False


class Purpose(StrEnum):
    """What a model is asked for while a batch is diagnosed."""

    #: notes on one segment of a summary that is too long for one call
    SURVEY = "survey"
    #: which lines to look at before concluding
    INVESTIGATE = "investigate"
    CONCLUDE = "conclude"


@dataclass(frozen=True)
class Case:
    """What a call about a batch is about, as the embedded model reads it; log text is data.

    `found` are the lines that were looked up, beside the summary's own.
    """

    purpose: Purpose
    summary: BatchSummary
    found: tuple[Quote, ...] = ()
    #: how many calls for this purpose went before
    turn: int = 0


class DiagnosisAgent(Protocol):
    """Diagnoses one batch, resuming where an earlier attempt was."""

    async def diagnose(
        self,
        run: DiagnosisRun,
        *,
        on_state: Callable[[AgentState], None],
        on_restart: Callable[[str], None],
        on_delta: Callable[[str], None],
        draining: Callable[[], bool],
    ) -> DiagnosisOutcome:
        """Diagnose; `on_delta` hears the text as it grows, `draining` asks the run to stop at the next step.

        Raises `AgentDrained` when it stopped for that reason.
        """
        ...

    async def reuse(self, run: DiagnosisRun, batch_id: str, earlier: Diagnosis) -> Diagnosis | None:
        """The diagnosis of an equal case said of this batch, with evidence of this batch's own.

        `None` where a finding has none here; nothing is asked of a model.
        """
        ...


@dataclass(frozen=True)
class DiagnosisStart:
    """An attempt at diagnosing a batch begins."""

    batch_id: str
    generation: int
    thread_id: str
    workflow_id: str
    first_execution_run_id: str
    #: when this very attempt was: it tells the newer one; now by default
    scheduled_at: datetime | None = None


class DiagnosisThreads(Protocol):
    """The checkpoint threads of diagnoses, and their epochs (G2.5)."""

    async def begin(self, start: DiagnosisStart) -> int | None:
        """Take the thread's next epoch, in one transaction.

        `None` when the batch's generation has reached a final state, or has a newer attempt or run.
        """
        ...


@dataclass(frozen=True)
class GatheredLogs:
    """What an attempt needs to know of a gathered batch; `logs` are those that were parsed."""

    state: BatchState
    logs: Sequence[LogFile]
    #: never told, logged or stored with a thread
    tenant_secret: bytes = field(repr=False)


class Diagnoses(Protocol):
    """The diagnoses of a tenant's batches."""

    async def of_signature(self, tenant_id: str, signature: str, model: str) -> tuple[str, Diagnosis] | None:
        """The newest diagnosis of an equal case by that model, proposed ones included, with its batch's id.

        One that repeats an earlier one is none: what is repeated is what was said first.
        """
        ...

    async def note_restart(self, batch_id: str, reason: str) -> None:
        """Say in the batch's history that its agent started afresh."""
        ...

    async def propose(
        self, batch_id: str, generation: int, thread_id: str, epoch: int, diagnosis: Diagnosis
    ) -> None:
        """Store a diagnosis, not yet official; raises `EpochSuperseded` for an older epoch."""
        ...


@dataclass(frozen=True)
class RecordedDiagnosis:
    """What became official."""

    verdict: Verdict
    risk_level: RiskLevel
    findings: int
    rule_based: bool
    reused_from: str

    @classmethod
    def of(cls, diagnosis: Diagnosis) -> Self:
        """What is told of the diagnosis."""
        return cls(
            verdict=diagnosis.verdict,
            risk_level=diagnosis.risk_level,
            findings=len(diagnosis.findings),
            rule_based=diagnosis.rule_based,
            reused_from=diagnosis.reused_from,
        )


class DiagnosisRecords(Protocol):
    """The saga's steps that make a diagnosis official, each beside its opposite; all idempotent (G4)."""

    async def record(self, batch_id: str, generation: int, thread_id: str) -> RecordedDiagnosis:
        """The proposal is official: its mark, saga row and outbox event in one transaction."""
        ...

    async def retract(self, batch_id: str, generation: int, reason: str) -> None:
        """Undo `record`, with a `DiagnosisRetracted` event; raises `SagaCompleted`."""
        ...

    async def publish(self, batch_id: str, generation: int) -> None:
        """The saga is completed."""
        ...

    async def flag_saga(self, batch_id: str, generation: int, reason: str) -> None:
        """The saga waits for a human, as a step could not be undone."""
        ...

    async def fail(self, batch_id: str, generation: int, code: str, message: str) -> None:
        """The batch goes without a diagnosis in that generation: why, told once."""
        ...


class Summaries(Protocol):
    """Gathered batches."""

    async def write(self, summary: BatchSummary, key: str, sha256: str) -> None:
        """Store a summary, unless that generation of the batch has one."""
        ...

    async def read(self, batch_id: str, generation: int) -> BatchSummary:
        """The batch's summary; raises `NotFound`."""
        ...

    async def baseline_of(self, batch_id: str) -> Baseline | None:
        """What the batch is compared with, if anything."""
        ...

    async def logs(self, batch_id: str, generation: int) -> GatheredLogs:
        """The batch's parsed logs in the order of their ordinals, and where it stands; raises `NotFound`."""
        ...


class DiagnosisReports(Protocol):
    """Reports of batches of logs, as plain data."""

    async def report(self, tenant_id: str, batch_id: str) -> dict[str, Any]:
        """The batch's report, computed from rows; raises `NotFound`."""
        ...

    async def files(self, tenant_id: str, batch_id: str) -> list[dict[str, Any]]:
        """All files of the batch by name, with what parsing says of each."""
        ...


@dataclass(frozen=True)
class DiagnosisDelta:
    """A piece of a diagnosis while it is written; `offset` is how many characters went before it.

    An offset beyond what was heard says that text was lost, an earlier one that the writing began anew.
    """

    batch_id: str
    text: str
    offset: int


class DiagnosisDeltas(Protocol):
    """Whoever watches a diagnosis being written."""

    def listening(self, batch_id: str) -> AbstractAsyncContextManager["Queue[DiagnosisDelta]"]:
        """What is said from now on; a listener that falls behind loses the oldest."""
        ...


class DiagnosisTexts(Protocol):
    """The text of a diagnosis while it is written, to whoever watches; neither numbered nor stored (B7.4)."""

    def publishing(self, batch_id: str) -> AbstractAsyncContextManager[Callable[[str], None]]:
        """Publish what the block says; a channel that is gone loses text and nothing else."""
        ...


@dataclass(frozen=True)
class NamedBaseline:
    """A batch that others are compared with, by a name of the tenant's."""

    name: str
    batch_id: str
    created_at: datetime
    updated_at: datetime


class Baselines(Protocol):
    """The batches that others are compared with (B7.1)."""

    async def put(self, tenant_id: str, name: str, batch_id: str) -> NamedBaseline:
        """Name a gathered batch, in place of what had the name; raises `NotFound` or `Conflict`."""
        ...

    async def read(self, tenant_id: str, name: str) -> NamedBaseline:
        """The tenant's baseline; raises `NotFound`."""
        ...

    async def list_of_tenant(
        self, tenant_id: str, page: int, page_size: int
    ) -> tuple[list[NamedBaseline], int]:
        """One page of baselines in the order of their names, and how many there are."""
        ...

    async def remove(self, tenant_id: str, name: str) -> None:
        """Forget the name; batches that were opened with it keep theirs. Raises `NotFound`."""
        ...


#: plain data, as JSON has it
Document = Mapping[str, Any]
