"""One batch of logs as a whole: what stands out against the baseline, and what is the matter (B7)."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from domain.batch import AgentState
from domain.completion import Payer
from domain.logs import Level, LogFile, Quote

SUMMARY_VERSION = 1
#: anomalies that a summary keeps, by score
TOP_ANOMALIES = 40
#: templates that a summary keeps for the report, by count; those of its anomalies always
TOP_TEMPLATES = 300


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

    Rates are lines per thousand lines. `file_ids` and `vehicles` are those it occurs in; both are bounded,
    `files` counts them all.
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
class Moment:
    """One stretch of a batch's time, as its chart has it: lines by level from `at` on."""

    at: str
    lines: int
    levels: dict[Level, int] = field(default_factory=dict)


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


class Diagnoses(Protocol):
    """The diagnoses of a tenant's batches."""

    async def of_signature(self, tenant_id: str, signature: str, model: str) -> tuple[str, Diagnosis] | None:
        """The newest diagnosis of an equal case by that model, with its batch's id."""
        ...

    async def propose(
        self, batch_id: str, generation: int, thread_id: str, epoch: int, diagnosis: Diagnosis
    ) -> None:
        """Store a diagnosis, not yet official; raises `EpochSuperseded` for an older epoch."""
        ...


class Summaries(Protocol):
    """Gathered batches."""

    async def read(self, batch_id: str, generation: int) -> BatchSummary:
        """The batch's summary; raises `NotFound`."""
        ...


class DiagnosisTexts(Protocol):
    """The text of a diagnosis while it is written, to whoever watches; neither numbered nor stored (B7.4)."""

    def publishing(self, batch_id: str) -> AbstractAsyncContextManager[Callable[[str], None]]:
        """Publish what the block says; a channel that is gone loses text and nothing else."""
        ...


#: plain data, as JSON has it
Document = Mapping[str, Any]
