"""The one tree of errors; a class is a condition, and decides what follows from it.

```text
AssayError
├── InvalidInput              the caller's data is wrong; says which field and the way out
│   ├── InvalidExam
│   ├── UnreadableSubmission
│   └── UnreadableLog         a log in which no lines can be read
├── Unauthenticated           no key, or none we know
├── Forbidden                 a key without the scope
├── NotFound                  not there, or another tenant's
├── Conflict                  right data at the wrong moment
│   ├── BatchFrozen
│   ├── EmptyBatch
│   ├── FileExists
│   ├── IdempotencyMismatch
│   ├── IllegalTransition
│   ├── NothingToRerun        no file of the batch is one that the re-run is for
│   ├── DigestMismatch
│   ├── LedgerConflict
│   ├── HoldExpired
│   ├── CallUnderway          the same call is being answered already
│   ├── ConversationBusy      another turn of the conversation is under way
│   ├── LockTimeout           somebody else held a lock for all the time that was given
│   └── LeaseLost             a lock that has another holder by now
├── LimitExceeded             a stated limit; the message names it
│   ├── PromptTooLong         more than the model can read at once
│   └── PayloadTooLarge       more than Temporal is given in one piece
├── BudgetExhausted           a limit of money refuses a call; says which and by how much
├── RateLimited               too much in too short a time; says when to come again
├── UnpricedModel             no price is known, and no call costs zero silently
├── Unavailable               something we need does not answer; try again
│   ├── PostgresUnavailable
│   │   └── PoolExhausted
│   ├── RedisUnavailable
│   ├── ObjectStoreUnavailable
│   ├── TemporalUnavailable
│   ├── ModelUnavailable
│   ├── ParserLost            a process that parses logs ended, or hangs
│   └── LedgerUnavailable
│       └── LedgerOverloaded
├── ModelReplyInvalid         a model answered something that is no answer
├── UnknownModel              no upstream of that name
├── ModelRefused              a provider refuses the call as it was made; trying again does not help
│   └── ModelAccessDenied     no key, or one that the provider does not accept
├── CheckpointNotSaved        Postgres did not take a checkpoint, again and again; a human should look
├── CorruptCheckpoint         a checkpoint that cannot be read back as it was written
├── AssessmentInvalid         an assessment that breaks the rubric's bounds
├── DocumentInvalid           a stored document that is not of the form it should have
├── EpochSuperseded           a newer attempt owns the thread; this one must not write
├── AgentDrained              the worker shuts down; the next attempt resumes
├── SagaStepRefused           a saga step met an error that is not unreachability
│   └── SagaCompleted         a saga that has completed is not undone any more
├── CompensationFailed        a saga's step could not be undone; a human should look
└── Defect                    our own mistake
```

Two translators and no third: `activities/failures.py` and `api/errors.py`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from domain.gateway import LimitState

from domain.fields import Mistake


class AssayError(Exception):
    """A condition with a stable code; `field` names the offending input where there is one."""

    code: ClassVar[str] = "assay_error"
    retryable: ClassVar[bool] = False
    #: expected conditions are logged as information, the others as errors
    expected: ClassVar[bool] = True
    retry_after_seconds: float | None = None

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field

    def facts(self) -> dict[str, str | int]:
        """What the condition states beside its message, for programs."""
        return {} if self.field is None else {"field": self.field}


class InvalidInput(AssayError):
    """The caller's data is wrong."""

    code = "invalid_input"


class InvalidExam(InvalidInput):
    """An exam that cannot be graded against."""

    code = "invalid_exam"

    def __init__(self, message: str, *, field: str | None = None, mistakes: Sequence[Mistake] = ()) -> None:
        super().__init__(message, field=field)
        #: every mistake that was found, the one of the message first
        self.mistakes = tuple(mistakes)

    @classmethod
    def of(cls, mistakes: Sequence[Mistake]) -> Self:
        """The condition of an exam with these mistakes, of which there is at least one."""
        first, more = mistakes[0], len(mistakes) - 1
        line = f"line {first.line}: " if first.line else ""
        others = f" ({more} more mistake{'s' * (more > 1)})" if more else ""
        return cls(f"{line}{first}{others}", field=first.path or "exam", mistakes=mistakes)


class UnreadableSubmission(InvalidInput):
    """A submitted file in which no answers can be read."""

    code = "unreadable_submission"


class UnreadableLog(InvalidInput):
    """A log in which no lines can be read."""

    code = "unreadable_log"


class Unauthenticated(AssayError):
    """No key, or none that is known and valid."""

    code = "unauthenticated"


class Forbidden(AssayError):
    """A valid key without the scope that the request needs."""

    code = "forbidden"


class NotFound(AssayError):
    """Not there, or another tenant's: the two are not told apart."""

    code = "not_found"


class Conflict(AssayError):
    """Right data at the wrong moment."""

    code = "conflict"


class BatchFrozen(Conflict):
    """Files cannot be added after `complete`."""

    code = "batch_frozen"


class EmptyBatch(Conflict):
    """`complete` on a batch without files."""

    code = "empty_batch"


class FileExists(Conflict):
    """A file of this name and other content is already there."""

    code = "file_exists"


class IdempotencyMismatch(Conflict):
    """An idempotency key was used before with another request."""

    code = "idempotency_mismatch"


class IllegalTransition(Conflict):
    """A move that the state machine's table does not have."""

    code = "illegal_transition"


class NothingToRerun(Conflict):
    """No file of the batch is one that the re-run is for."""

    code = "nothing_to_rerun"


class DigestMismatch(Conflict):
    """The uploaded bytes are not the ones that the client stated."""

    code = "digest_mismatch"


class LedgerConflict(Conflict):
    """An event of the ledger was written before with another content."""

    code = "ledger_conflict"


class HoldExpired(Conflict):
    """A hold was cancelled before it was dispatched; begin the call again."""

    code = "hold_expired"


class CallUnderway(Conflict):
    """The same call, by its Idempotency-Key, is being answered already."""

    code = "call_underway"
    retryable = True
    retry_after_seconds = 1.0


class ConversationBusy(Conflict):
    """Another turn of the conversation is under way."""

    code = "conversation_busy"
    retryable = True
    retry_after_seconds = 1.0


class LockTimeout(Conflict):
    """Somebody else held a lock for all the time that was given."""

    code = "lock_timeout"
    retryable = True
    retry_after_seconds = 1.0


class LeaseLost(Conflict):
    """A lock that has another holder by now: what was begun under it may not be written."""

    code = "lease_lost"
    retryable = True
    retry_after_seconds = 1.0


class LimitExceeded(AssayError):
    """A stated limit was passed; the message names it."""

    code = "limit_exceeded"


class PromptTooLong(LimitExceeded):
    """Question, rubric and answer together are more than the model can read at once."""

    code = "prompt_too_long"


class PayloadTooLarge(LimitExceeded):
    """More than Temporal is given in one piece; pass a reference instead."""

    code = "payload_too_large"


class BudgetExhausted(AssayError):
    """A limit of money refuses a call: the scope's name, and what it lacks for the call's worst case.

    `held_nanodollars` are set aside for calls under way: what of it they do not use will be free again.
    """

    code = "budget_exhausted"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        scope: str = "",
        missing_nanodollars: int = 0,
        held_nanodollars: int = 0,
    ) -> None:
        super().__init__(message, field=field)
        self.scope = scope
        self.missing_nanodollars = missing_nanodollars
        self.held_nanodollars = held_nanodollars

    @property
    def may_pass(self) -> bool:
        """Whether the call may fit once the calls under way are settled."""
        return 0 < self.missing_nanodollars <= self.held_nanodollars

    def facts(self) -> dict[str, str | int]:
        """The scope and the amount, too."""
        return super().facts() | {"scope": self.scope, "missing_nanodollars": self.missing_nanodollars}


class RateLimited(AssayError):
    """Too many requests, tokens or calls at once; `limit` names which one.

    `states` are how all limits of the call stood, as far as they were looked at.
    """

    code = "rate_limited"
    retryable = True
    retry_after_seconds = 1.0

    def __init__(
        self,
        message: str,
        *,
        limit: str = "",
        retry_after_seconds: float = 1.0,
        field: str | None = None,
        states: "Sequence[LimitState]" = (),
    ) -> None:
        super().__init__(message, field=field)
        self.limit = limit
        self.states = tuple(states)
        self.retry_after_seconds = retry_after_seconds

    def facts(self) -> dict[str, str | int]:
        """Which limit, too."""
        return super().facts() | {"limit": self.limit}


class UnpricedModel(AssayError):
    """No price is known for what a call would use."""

    code = "unpriced_model"


class Unavailable(AssayError):
    """Something that the work needs does not answer."""

    code = "unavailable"
    retryable = True
    retry_after_seconds = 1.0


class PostgresUnavailable(Unavailable):
    """Postgres does not answer."""

    code = "postgres_unavailable"


class PoolExhausted(PostgresUnavailable):
    """No connection became free in time."""

    code = "pool_exhausted"


class RedisUnavailable(Unavailable):
    """Redis does not answer; what needs it goes on without."""

    code = "redis_unavailable"


class ObjectStoreUnavailable(Unavailable):
    """The object store does not answer."""

    code = "object_store_unavailable"


class TemporalUnavailable(Unavailable):
    """Temporal does not answer."""

    code = "temporal_unavailable"
    retry_after_seconds = 5.0


class ModelUnavailable(Unavailable):
    """A model's upstream does not answer; `retry_after_seconds` is the upstream's own word where it gave one.

    `in_doubt` when the call had left and nobody knows whether it was answered, and charged for.
    """

    code = "model_unavailable"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        retry_after_seconds: float | None = None,
        in_doubt: bool = False,
    ) -> None:
        super().__init__(message, field=field)
        if retry_after_seconds is not None:
            self.retry_after_seconds = retry_after_seconds
        self.in_doubt = in_doubt


class ParserLost(Unavailable):
    """The process that parsed a log ended, or hangs; another one starts on it."""

    code = "parser_lost"


class LedgerUnavailable(Unavailable):
    """The ledger cannot say now whether a call may be paid; what was written stays written."""

    code = "ledger_unavailable"


class LedgerOverloaded(LedgerUnavailable):
    """The ledger's queue stayed full until the caller's deadline; nothing was written."""

    code = "ledger_overloaded"


class ModelReplyInvalid(AssayError):
    """A model answered something that is no answer to the question put."""

    code = "model_reply_invalid"


class UnknownModel(AssayError):
    """No upstream serves a model of that name."""

    code = "unknown_model"


class ModelRefused(AssayError):
    """A provider refuses the call as it was made; the same call would be refused again."""

    code = "model_refused"


class ModelAccessDenied(ModelRefused):
    """A provider does not accept our key, or there is none; the message names the setting."""

    code = "model_access_denied"


class CheckpointNotSaved(AssayError):
    """A checkpoint could not be saved, tried again and again; the file waits for a human (G2.7)."""

    code = "checkpoint_not_saved"


class CorruptCheckpoint(AssayError):
    """A checkpoint that cannot be read back as it was written."""

    code = "corrupt_checkpoint"
    expected = False


class AssessmentInvalid(AssayError):
    """An assessment that breaks the rubric's bounds."""

    code = "assessment_invalid"
    expected = False


class DocumentInvalid(AssayError):
    """A stored document that is not of the form it should have, such as a foreign worker's."""

    code = "document_invalid"
    expected = False


class EpochSuperseded(AssayError):
    """A newer attempt owns the thread; this one must not write any more."""

    code = "epoch_superseded"


class AgentDrained(AssayError):
    """The worker is shutting down; the next attempt resumes at the checkpoint."""

    code = "agent_drained"
    retryable = True
    retry_after_seconds = 0.1


class SagaStepRefused(AssayError):
    """A saga step met an error that is not unreachability; the saga compensates."""

    code = "saga_step_refused"
    expected = False


class SagaCompleted(SagaStepRefused):
    """A saga that has completed is not undone any more: what it made official stays."""

    code = "saga_completed"


class CompensationFailed(AssayError):
    """A saga's step could not be undone; the file waits for a human (G4.4)."""

    code = "compensation_failed"
    expected = False


class Defect(AssayError):
    """Our own mistake: an error that no class above describes."""

    code = "defect"
    expected = False
