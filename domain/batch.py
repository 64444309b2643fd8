"""Batches, files and their progress, as the rest of the product passes them around."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from domain.states import FILE_MACHINE, BatchState, FileState

MAX_FILES = 100_000
#: of all files that one tenant has stored
MAX_TENANT_BYTES = 1024**4
MAX_CONCURRENT = 1_000
DEFAULT_MAX_CONCURRENT = 10


class BatchKind(StrEnum):
    """The line of work."""

    GRADING = "grading"
    DIAGNOSIS = "diagnosis"


@dataclass(frozen=True)
class BatchOpening:
    """What a caller states when opening a batch (B1.1)."""

    kind: BatchKind
    exam_id: str | None = None
    baseline: str | None = None
    name: str = ""
    model: str = "local"
    vehicle_id: str = ""
    vin: str = ""
    expected_workers: int = DEFAULT_MAX_CONCURRENT
    max_concurrent: int = DEFAULT_MAX_CONCURRENT
    limit_nanodollars: int | None = None


@dataclass(frozen=True)
class Batch:
    """A set of files assessed together."""

    id: str
    tenant_id: str
    opening: BatchOpening
    rubric_version: int
    state: BatchState
    generation: int
    total_files: int
    trace_id: str
    created_at: datetime
    updated_at: datetime
    failure_code: str | None = None
    #: how often it has been resumed after a pause
    resumptions: int = 0
    #: the batch that its baseline stood for when it was opened
    baseline_batch_id: str | None = None


@dataclass(frozen=True)
class LogFigures:
    """What is known of a log that was parsed, in figures; `incomplete` says what was not read, and why."""

    format: str
    lines: int
    parsed_lines: int
    expanded_bytes: int
    templates: int
    signals: int
    levels: dict[str, int]
    first_at: str = ""
    last_at: str = ""
    incomplete: str = ""

    @property
    def coverage(self) -> float:
        """The share of the lines that its templates count."""
        return self.parsed_lines / self.lines if self.lines else 1.0


@dataclass(frozen=True)
class StoredFile:
    """One uploaded file and where it stands."""

    id: str
    batch_id: str
    tenant_id: str
    name: str
    ordinal: int
    size_bytes: int
    sha256: str
    object_key: str
    state: FileState
    generation: int
    created_at: datetime
    updated_at: datetime
    workflow_id: str | None = None
    run_id: str | None = None
    failure_code: str | None = None
    failure_message: str | None = None
    vehicle_id: str = ""
    vin: str = ""
    score: float | None = None
    max_score: float | None = None
    needs_review: bool = False
    #: of a log, once it is parsed
    log: LogFigures | None = None


@dataclass
class Counts:
    """How many files are in each state; the sum is the batch's total."""

    uploaded: int = 0
    queued: int = 0
    running: int = 0
    paused: int = 0
    needs_intervention: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def total(self) -> int:
        """All files."""
        return sum(getattr(self, state) for state in FileState)

    @property
    def finished(self) -> int:
        """Files in a final state."""
        return sum(getattr(self, state) for state in FILE_MACHINE.final)

    @property
    def percentage(self) -> float:
        """Finished files in percent, with one decimal."""
        return round(100 * self.finished / self.total, 1) if self.total else 0.0


@dataclass
class Pause:
    """Why a file waits: the scope whose limit refused, and by how much; `resumptions` dates it.

    A pause is out of date once the batch has been resumed more often than it says.
    """

    scope: str = ""
    missing_nanodollars: int = 0
    file_id: str = ""
    resumptions: int = 0


@dataclass
class Progress:
    """A batch's progress (G6.1): from the workflow's query while it runs, from Postgres always."""

    batch_id: str
    stage: str
    percentage: float
    updated_at: str
    counts: Counts = field(default_factory=Counts)
    spent_nanodollars: int = 0
    #: money that waits for an upstream's word: dispatched, and neither committed nor cancelled
    settling_nanodollars: int = 0
    pause: Pause | None = None


@dataclass(frozen=True)
class ProgressEvent:
    """A numbered fact about a batch's progress (B5.5); `number` is per batch, without gaps."""

    event_id: str
    event_type: str
    batch_id: str
    number: int
    timestamp: str
    file_id: str | None = None
    data: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The event as published, without an absent file."""
        file = {} if self.file_id is None else {"file_id": self.file_id}
        return {
            "event_type": self.event_type,
            "batch_id": self.batch_id,
            **file,
            "timestamp": self.timestamp,
            "event_id": self.event_id,
            "number": self.number,
            **self.data,
        }


class EventType(StrEnum):
    """The domain events that a batch's progress is made of."""

    BATCH_CREATED = "BatchCreated"
    UPLOAD_COMPLETED = "UploadCompleted"
    STATUS_CHANGED = "StatusChanged"
    FILE_SCATTERED = "FileScattered"
    FILE_PARSED = "FileParsed"
    FILE_ASSESSED = "FileAssessed"
    ASSESSMENT_RETRACTED = "AssessmentRetracted"
    AGENT_RESTARTED = "AgentRestarted"
    MARKS_OVERRIDDEN = "MarksOverridden"
    OVERRIDE_RETRACTED = "OverrideRetracted"
    ALL_FILES_SCATTERED = "AllFilesScattered"
    ALL_FILES_GATHERED = "AllFilesGathered"
    DIAGNOSIS_COMPLETED = "DiagnosisCompleted"
    DIAGNOSIS_RETRACTED = "DiagnosisRetracted"
    DIAGNOSIS_FAILED = "DiagnosisFailed"
    REPORT_READY = "ReportReady"


@dataclass
class AgentState:
    """What the query `state` and `workflow_state:{workflow_id}` say of an agent's run (G2.2)."""

    thread_id: str = ""
    checkpoint_id: str = ""
    node: str = ""
    stage: str = "queued"
    percentage: float = 0.0
    updated_at: str = ""
    #: ids of the newest events from outside that its graph has heard, oldest first
    external_events: list[str] = field(default_factory=list)
