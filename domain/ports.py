"""The ports: what one station may ask of another, whoever stands behind it."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from domain.assessment import Assessment
from domain.batch import AgentState, Batch, BatchOpening, Counts, Pause, Progress, ProgressEvent, StoredFile
from domain.completion import CompletionReply, CompletionRequest, Payer
from domain.estimates import FileSize
from domain.exam import Exam, Question
from domain.gateway import Caller
from domain.overrides import Override
from domain.prices import ModelPrices
from domain.states import BatchState, FileState
from domain.threads import ForkPlace, SavedCheckpoint, SavedState


class Clock(Protocol):
    """The time, so that tests can hold it."""

    def now(self) -> datetime:
        """The present moment, in UTC."""
        ...


class Models(Protocol):
    """The door to every model; the gateway stands here."""

    async def complete(self, request: CompletionRequest) -> CompletionReply:
        """One reply with its usage.

        Raises `ModelUnavailable`, `UnknownModel`, `ModelRefused` or `PromptTooLong`.
        """
        ...


class Prices(Protocol):
    """What models cost."""

    async def of_model(self, name: str) -> ModelPrices:
        """The model's prices; raises `UnpricedModel`, which names the way out."""
        ...


class TokenRatios(Protocol):
    """How many tokens a family of models makes of a byte, as counted so far."""

    async def add(self, family: str, calls_by_hundredths: Mapping[int, int]) -> None:
        """Count more calls."""
        ...

    async def of_family(self, family: str) -> Mapping[int, int]:
        """Calls by hundredths of a token for a byte."""
        ...


# --- the agent -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class AgentRun:
    """One attempt at one agent's work: whose thread, in which epoch, on what, on whose account.

    `secret` is the tenant's: it makes the marks that fence student text off in prompts (G8.5).
    """

    thread_id: str
    epoch: int
    file_id: str
    generation: int
    model: str
    exam: Exam
    answers: Mapping[str, str]
    payer: Payer
    secret: bytes = field(repr=False)
    trace_id: str = ""


@dataclass(frozen=True)
class AgentOutcome:
    """What an agent's run ended with; `restarted` when a corrupt checkpoint was thrown away."""

    assessment: Assessment
    state: AgentState
    restarted: bool = False


class GradingAgent(Protocol):
    """Grades one submission, resuming where an earlier attempt was."""

    async def assess(
        self,
        run: AgentRun,
        *,
        on_state: Callable[[AgentState], None],
        on_restart: Callable[[str], None],
        draining: Callable[[], bool],
    ) -> AgentOutcome:
        """Grade; `on_state` hears every durable step, `draining` asks the run to stop at the next one.

        Raises `AgentDrained` when it stopped for that reason.
        """
        ...


class Threads(Protocol):
    """The agents' checkpoint threads and their epochs (G2.5)."""

    async def begin(self, start: "AssessmentStart") -> int | None:
        """Take the thread's next epoch and mark the file running, in one transaction.

        `None` when the file's generation has reached a final state, or has a newer attempt or run.
        """
        ...


@dataclass(frozen=True)
class AssessmentStart:
    """An attempt at a submission begins."""

    file_id: str
    generation: int
    thread_id: str
    workflow_id: str
    first_execution_run_id: str
    #: when this very attempt was: it tells the newer one; now by default
    scheduled_at: datetime | None = None


# --- what outlives a process ---------------------------------------------------------------------


class Exams(Protocol):
    """Exams with their versioned rubrics."""

    async def create(self, tenant_id: str, exam: Exam, exam_id: str) -> Exam:
        """Store a new exam with rubric version 1 under that id; one that is there is answered as it is."""
        ...

    async def read(self, exam_id: str, rubric_version: int | None = None) -> Exam:
        """The exam at a rubric version, the newest by default; raises `NotFound`."""
        ...

    async def read_of_tenant(self, tenant_id: str, exam_id: str) -> Exam:
        """The tenant's exam at its newest version; raises `NotFound`."""
        ...

    async def list_of_tenant(self, tenant_id: str, page: int, page_size: int) -> tuple[list[Exam], int]:
        """One page of exams without their questions, newest first, and how many there are."""
        ...


@dataclass(frozen=True)
class Upload:
    """A file whose bytes are in the object store and whose row is to be written."""

    file_id: str
    name: str
    object_key: str
    size_bytes: int
    sha256: str
    vehicle_id: str = ""
    vin: str = ""


@dataclass(frozen=True)
class StoredUpload:
    """The row that an upload ended as; `replaced_object_key` may be deleted now."""

    file: StoredFile
    created: bool
    replaced_object_key: str | None = None


@dataclass(frozen=True)
class EventPosition:
    """How far a batch's events are numbered; `unnumbered` ones are written and wait for the relay."""

    last_number: int
    unnumbered: int


class Batches(Protocol):
    """Batches and their files; each transition is one transaction with its event."""

    async def open(self, tenant_id: str, opening: BatchOpening, trace_id: str, batch_id: str) -> Batch:
        """A new pending batch under that id; one that is there is answered as it is.

        Raises `NotFound` for an exam that the tenant does not have.
        """
        ...

    async def read(self, tenant_id: str, batch_id: str) -> Batch:
        """The tenant's batch; raises `NotFound`."""
        ...

    async def list_of_tenant(
        self, tenant_id: str, page: int, page_size: int, state: BatchState | None
    ) -> tuple[list[Batch], int]:
        """One page of batches, newest first, and how many there are."""
        ...

    async def check_accepts(self, tenant_id: str, batch_id: str, name: str) -> Batch:
        """The batch, if it takes files still; raises `BatchFrozen`, `LimitExceeded` or `NotFound`."""
        ...

    async def add_file(
        self, tenant_id: str, batch_id: str, upload: Upload, *, overwrite: bool
    ) -> StoredUpload:
        """Write the file's row; same name and content is a no-op, other content `FileExists`."""
        ...

    async def complete(self, tenant_id: str, batch_id: str) -> Batch:
        """Freeze the files and number them; a batch already frozen is answered as it is."""
        ...

    async def cancel_before_start(self, tenant_id: str, batch_id: str) -> Batch | None:
        """Cancel a batch that no workflow runs yet; `None` if one does."""
        ...

    async def files(
        self, tenant_id: str, batch_id: str, page: int, page_size: int
    ) -> tuple[list[StoredFile], int]:
        """One page of files in the order of their names, and how many there are."""
        ...

    async def file_sizes(self, batch_id: str) -> list[FileSize]:
        """Names and sizes of all its files."""
        ...

    async def file(self, tenant_id: str, batch_id: str, file_id: str) -> StoredFile:
        """One file; raises `NotFound`."""
        ...

    async def submission(self, tenant_id: str, file_id: str) -> StoredFile:
        """The tenant's file, whichever batch it is in; raises `NotFound`."""
        ...

    async def census(self, tenant_id: str) -> tuple[dict[str, int], dict[str, int]]:
        """How many batches and how many files of the tenant are in each state."""
        ...

    async def progress(self, batch_id: str) -> Progress:
        """Counts by state from Postgres, the truth."""
        ...

    async def event_position(self, batch_id: str, file_id: str | None = None) -> EventPosition:
        """The batch's last number, and how many events (of that file, if one is named) have none yet."""
        ...

    async def events_after(self, batch_id: str, number: int, limit: int) -> list[ProgressEvent]:
        """Numbered events after that number, in order."""
        ...


class Results(Protocol):
    """The results of grading."""

    async def of_submission(self, submission_id: str) -> list[dict[str, Any]]:
        """The submission's question results as plain data, in the exam's order."""
        ...

    async def report(self, tenant_id: str, batch_id: str) -> dict[str, Any]:
        """The batch's report, computed from rows; raises `NotFound`."""
        ...

    async def criterion_marks(self, tenant_id: str, batch_id: str) -> dict[str, dict[str, dict[str, Any]]]:
        """Each submission's points, confidence and quote by `question/criterion`, in the exam's order."""
        ...


class ReportCache(Protocol):
    """Reports for ten minutes; absence is never an error."""

    async def read(self, batch_id: str) -> dict[str, Any] | None:
        """The cached report, or `None` (also when Redis is gone)."""
        ...

    async def newest_mark(self, batch_id: str) -> str | None:
        """The mark that is valid now; `None` where none is, or Redis is gone."""
        ...

    async def mark(self, batch_id: str) -> str | None:
        """What a report is written with that is read from now on; `None` when Redis is gone."""
        ...

    async def write(
        self, batch_id: str, report: Mapping[str, Any], *, mark: str | None, fence: int | None = None
    ) -> None:
        """Cache the report, if that is possible and it was not forgotten since the mark was taken.

        With a fence only where none is that had a newer one.
        """
        ...

    async def forget(self, batch_id: str) -> None:
        """Drop the cached report, if that is possible; one that is being rebuilt now is not cached."""
        ...


class Keys(Protocol):
    """API keys; only their hashes are stored."""

    async def authenticate(self, secret: str) -> Caller:
        """The caller of that key; raises `Unauthenticated`."""
        ...


@dataclass(frozen=True)
class Claim:
    """The id that an idempotency key stands for; `first` for the request that brought the key."""

    created_id: str
    first: bool


class IdempotencyKeys(Protocol):
    """Which id a creating request makes, so that its repetition makes the same one."""

    async def claim(self, tenant_id: str, key: str, request_sha256: str, new_id: str) -> Claim:
        """Bind the key to the new id, unless it is bound; another request is an `IdempotencyMismatch`."""
        ...

    async def release(self, tenant_id: str, key: str) -> None:
        """Forget the claim of a request that was refused, so that a corrected one may use the key."""
        ...


class Objects(Protocol):
    """The object store: files by key."""

    async def write(
        self, key: str, chunks: AsyncIterator[bytes], seen: Callable[[bytes], object] = len
    ) -> None:
        """Store a stream in parts with constant memory; an error on the way leaves no object.

        A cancellation at its very end may leave it whole. `seen` hears of all bytes in their order, beside
        the event loop where they are many.
        """
        ...

    async def read(self, key: str) -> bytes:
        """The whole object; raises `NotFound`."""
        ...

    def stream(self, key: str, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The object from a byte on, in parts with constant memory; raises `NotFound` at the first."""
        ...

    async def rename(self, source: str, target: str) -> None:
        """Move an object; the target is overwritten."""
        ...

    async def delete(self, key: str) -> None:
        """Remove the object; absence is no error."""
        ...


class ProgressBell(Protocol):
    """Wakes whoever watches a batch; a bell that cannot ring is no error, Postgres has the events."""

    async def wait(self, batch_id: str, timeout_seconds: float) -> bool:
        """Wait for the batch's bell; `False` after the time."""
        ...


class Orchestrator(Protocol):
    """Temporal, as the API sees it."""

    async def start_batch(self, batch: Batch) -> None:
        """Start the batch's workflow, once however often it is asked; raises `TemporalUnavailable`."""
        ...

    async def cancel_batch(self, batch: Batch) -> None:
        """Ask the batch's workflow to cancel; raises `TemporalUnavailable`."""
        ...

    async def resume_batch(self, batch: Batch, resumptions: int) -> None:
        """Tell the batch's workflow that it was resumed; raises `NotFound` or `TemporalUnavailable`."""
        ...

    async def start_override(self, override: Override) -> None:
        """Start the override's workflow, once however often it is asked; raises `TemporalUnavailable`."""
        ...

    async def retry_file(self, workflow_id: str) -> None:
        """Tell a file's workflow that what it waits for is seen to; raises as `resume_batch`."""
        ...

    async def agent_state(self, workflow_id: str) -> AgentState:
        """The workflow's own word on its agent; raises `NotFound` or `TemporalUnavailable`."""
        ...

    async def ping(self) -> None:
        """Raises `TemporalUnavailable`."""
        ...


class Pinged(Protocol):
    """A resource that can say whether it is there."""

    async def ping(self) -> None:
        """Raises the resource's `Unavailable`."""
        ...


# --- what activities ask for ---------------------------------------------------------------------


@dataclass(frozen=True)
class SubmissionRef:
    """What an attempt needs to find a submission and its exam."""

    file_id: str
    name: str
    object_key: str
    exam_id: str
    rubric_version: int
    state: FileState
    #: never told, logged or stored with a thread
    tenant_secret: bytes = field(repr=False)


class SubmissionReader(Protocol):
    """Reads submitted files of every format."""

    async def read(self, name: str, content: bytes, questions: Sequence[Question]) -> dict[str, str]:
        """The answers by question id, none where nothing was written; raises `UnreadableSubmission`."""
        ...


class Submissions(Protocol):
    """Submissions and the outcomes of assessing them."""

    async def find(self, file_id: str) -> SubmissionRef:
        """Where the submission and its exam are; raises `NotFound`."""
        ...

    async def propose(
        self, file_id: str, generation: int, thread_id: str, epoch: int, assessment: Assessment
    ) -> None:
        """Store an assessment, not yet official; raises `EpochSuperseded` for an older epoch."""
        ...

    async def note_restart(self, file_id: str, reason: str) -> None:
        """Say in the file's history that its agent started afresh."""
        ...


@dataclass(frozen=True)
class Recorded:
    """What became official."""

    score: float
    max_score: float
    needs_review: bool


class Assessments(Protocol):
    """The persisting saga's steps in Postgres, each beside its opposite; all idempotent (G4)."""

    async def record(self, file_id: str, generation: int, thread_id: str) -> Recorded:
        """Results, submission status, saga row and outbox event in one transaction."""
        ...

    async def erase(self, file_id: str, generation: int, thread_id: str, reason: str) -> None:
        """Undo `record`, with an `AssessmentRetracted` event.

        Raises `SagaCompleted`, and `EpochSuperseded` for a run whose file has another by now.
        """
        ...

    async def finish(self, file_id: str, generation: int) -> None:
        """The saga is completed and so is the file, in one transaction."""
        ...

    async def fail(self, file_id: str, generation: int, code: str, message: str) -> None:
        """The file ends `failed`, unless it has ended."""
        ...

    async def flag_saga(self, file_id: str, generation: int, reason: str) -> None:
        """The saga and its file wait for a human, as a step could not be undone."""
        ...

    async def flag(self, file_id: str, generation: int, code: str, message: str) -> None:
        """The file waits for a human, if it is running."""
        ...

    async def cancel(self, file_id: str, generation: int) -> None:
        """The file ends `cancelled`, unless it has ended."""
        ...


class Pauses(Protocol):
    """Files and batches that wait for money; the row of the batch decides every race (B5.4)."""

    async def pause(self, batch_id: str, file_id: str, generation: int, pause: Pause) -> int:
        """Pause the file and its batch, unless the batch has been resumed since; how often that was."""
        ...

    async def pause_batch(self, batch_id: str, generation: int, pause: Pause) -> int:
        """Pause the batch as a whole, unless it has been resumed since; how often that was."""
        ...

    async def note_resumed(self, batch_id: str, resumptions: int) -> None:
        """The workflow knows of that many resumptions."""
        ...


class Reruns(Protocol):
    """The only way out of a final state: a new generation of the batch with some of its files (B5.1)."""

    async def retry_failed(self, tenant_id: str, batch_id: str) -> Batch:
        """All failed and cancelled files again; the batch, scattering in its new generation.

        Raises `NotFound`, `IllegalTransition` for a batch that is not final, `NothingToRerun`.
        """
        ...

    async def fork(
        self, tenant_id: str, batch_id: str, place: ForkPlace, submission_ids: Sequence[str] | None = None
    ) -> Batch:
        """These files, all failed ones by default, each from its checkpoint at that place on.

        Raises as `retry_failed`, and `NotFound` where such a checkpoint is not there (any more).
        """
        ...


class ThreadHistory(Protocol):
    """What agents' threads were, checkpoint by checkpoint (G2.6)."""

    async def checkpoints(self, file_id: str) -> list[SavedCheckpoint]:
        """Those of all threads of the file, newest first."""
        ...

    async def read(
        self, file_id: str, checkpoint_id: str, thread_id: str | None = None
    ) -> tuple[SavedCheckpoint, SavedState]:
        """One of them with its state as saved; raises `NotFound` for a pruned or unknown one.

        A fork has copies of what it began with: the newest thread's is meant unless one is named.
        """
        ...


class Resumptions(Protocol):
    """The way out of a pause; each is one transaction."""

    async def resume(self, tenant_id: str, batch_id: str) -> int | None:
        """Return a paused batch to where it was; how often it was resumed, `None` if it is not paused."""
        ...

    async def set_limit(self, tenant_id: str, batch_id: str, limit_nanodollars: int | None) -> int | None:
        """Set the batch's limit, and resume it where it is paused; as `resume`."""
        ...


class ResultCache(Protocol):
    """Hot results of one submission (G3.5): those of its newest mark, and no older ones."""

    async def mark(self, submission_id: str) -> str:
        """Void what is cached, and what others are about to cache; raises as `write`.

        Results are read between this and `write`: then they are no older than what they replace.
        """
        ...

    async def write(self, submission_id: str, results: Sequence[Mapping[str, Any]], mark: str) -> None:
        """Cache each question's result for an hour, if the mark is still the newest.

        Raises `RedisUnavailable` or the driver's refusal.
        """
        ...

    async def read(self, submission_id: str, question_ids: Sequence[str]) -> list[dict[str, Any]] | None:
        """All of them, or `None` if one is missing or void, or Redis is gone."""
        ...

    async def forget(self, submission_id: str) -> None:
        """Void what is cached, and what is about to be; raises `RedisUnavailable`."""
        ...


class Barrier(Protocol):
    """The batch's set of finished files in Redis: fast, and never the truth (B4)."""

    async def arrive(self, batch_id: str, file_id: str) -> int:
        """1 for a file's first arrival, 0 for a repetition; raises `RedisUnavailable`."""
        ...

    async def count(self, batch_id: str) -> int:
        """How many have arrived; raises `RedisUnavailable`."""
        ...

    async def rebuild(self, batch_id: str, file_ids: Sequence[str]) -> int:
        """Put in what Postgres knows; answers the count."""
        ...

    async def withdraw(self, batch_id: str, file_ids: Sequence[str]) -> None:
        """Take out files that are assessed anew; raises `RedisUnavailable`."""
        ...


class StatePublisher(Protocol):
    """Live states of agents, in Redis for a day."""

    async def publish(self, workflow_id: str, submission_id: str, state: AgentState) -> None:
        """Show the state, if that is possible; never raises for an absent Redis."""
        ...


class AgentStates(Protocol):
    """The latest durable states of agents."""

    async def latest(self, workflow_id: str) -> AgentState | None:
        """The state, or `None` before the agent's first checkpoint."""
        ...


class Bell(Protocol):
    """Tells the relay that events wait."""

    async def ring(self) -> None:
        """Raises `RedisUnavailable`; the events wait in the outbox all the same."""
        ...


@dataclass(frozen=True)
class Window:
    """A stretch of a batch's files: the ids still to assess, in order, and how the others ended."""

    file_ids: list[str]
    ended: dict[str, int]


@dataclass(frozen=True)
class Stretch:
    """Ordinals of a batch that runs again: how many of its files do, and how the others have ended."""

    first: int
    last: int
    again: int
    ended: dict[str, int]


class BatchRuns(Protocol):
    """The moves of a running batch, each one transaction with its events."""

    async def begin_scattering(self, batch_id: str) -> None:
        """uploaded → scattering; a repetition is a no-op."""
        ...

    async def queue_window(self, batch_id: str, first: int, last: int) -> "Window":
        """Queue the files with these ordinals, both included."""
        ...

    async def stretches(self, batch_id: str, files: int) -> list[Stretch]:
        """All ordinals in stretches, each with at most so many files of the batch's generation."""
        ...

    async def open_barrier(self, batch_id: str) -> Counts:
        """scattering → scattered, once every file is final; a repetition is a no-op."""
        ...

    async def begin_gathering(self, batch_id: str) -> None:
        """scattered → gathering."""
        ...

    async def gather(self, batch_id: str) -> Counts:
        """scattered → gathering → gathered: the files' outcomes counted."""
        ...

    async def begin_diagnosing(self, batch_id: str) -> None:
        """gathered → diagnosing."""
        ...

    async def finish(self, batch_id: str) -> BatchState:
        """gathered → completed, partial or failed, with `ReportReady`."""
        ...

    async def end_early(
        self, batch_id: str, target: BatchState, code: str | None, *, generation: int = 1
    ) -> Counts:
        """That generation of the batch ends `cancelled` or `failed`, its unfinished files `cancelled`.

        Idempotent; a generation that is over ends nothing.
        """
        ...

    async def finished_files(self, batch_id: str) -> list[str]:
        """The ids of files in a final state."""
        ...
