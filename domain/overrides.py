"""A human's marks instead of a machine's: the official result changes, every earlier one is kept (G4.2)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from domain.assessment import CriterionResult, QuestionResult
from domain.errors import InvalidInput

#: as `specialist` of a result, and before an override's id as `reader` of an assessment
HUMAN = "human"
MAX_REASON_LENGTH = 2_000


@dataclass
class Override:
    """One question of a submission marked by a human; `points` by criterion id, others stay as they are."""

    override_id: str
    tenant_id: str
    batch_id: str
    submission_id: str
    question_id: str
    reason: str
    #: the key with which it was made
    made_by: str
    points: dict[str, float] = field(default_factory=dict)
    trace_id: str = ""


@dataclass(frozen=True)
class StoredOverride:
    """An override and how far its saga is; what it replaced is kept in it."""

    override_id: str
    question_id: str
    generation: int
    reason: str
    made_by: str
    status: str
    score_before: float
    score_after: float
    created_at: str


class Overrides(Protocol):
    """Overrides of official results, each step beside its opposite; all idempotent."""

    async def check(self, override: Override) -> None:
        """Whether it could be applied now.

        Raises `NotFound`, `IllegalTransition` for what is not graded (any more) or has another override under
        way, and `InvalidInput` with the field.
        """
        ...

    async def apply(self, override: Override) -> None:
        """Replace the official result, with its saga's row and an event, in one transaction; as `check`."""
        ...

    async def retract(self, override: Override, reason: str) -> None:
        """Put back what `apply` replaced; raises `SagaCompleted`."""
        ...

    async def finish(self, override: Override) -> None:
        """The saga is completed."""
        ...

    async def flag(self, override: Override, reason: str) -> None:
        """The saga waits for a human, as a step could not be undone."""
        ...

    async def list_of_submission(self, tenant_id: str, submission_id: str) -> list[StoredOverride]:
        """All that were ever applied, newest first; raises `NotFound`."""
        ...


def overridden(result: QuestionResult, points: Mapping[str, float], reason: str) -> QuestionResult:
    """The result as the human has it; raises `InvalidInput` with the field.

    What it cost stays; what a human has decided needs no review.
    """
    known = {each.criterion_id for each in result.criteria}
    if not points:
        raise InvalidInput("points: state those of at least one criterion.", field="points")
    if unknown := sorted(set(points) - known):
        raise InvalidInput(
            f"points.{unknown[0]}: the question has no such criterion; it has {', '.join(sorted(known))}.",
            field=f"points.{unknown[0]}",
        )
    criteria = tuple(
        _marked(each, points[each.criterion_id], reason) if each.criterion_id in points else each
        for each in result.criteria
    )
    return replace(
        result,
        criteria=criteria,
        # the cap comes last: rounding must not lift a sum over it
        score=min(result.max_score, round(sum(each.points for each in criteria), 2)),
        specialist=HUMAN,
        advisory=False,
        review_reasons=(),
    )


def _marked(criterion: CriterionResult, points: float, reason: str) -> CriterionResult:
    if not 0 <= points <= criterion.max_points:
        where = f"points.{criterion.criterion_id}"
        raise InvalidInput(f"{where}: {points:g} is not between 0 and {criterion.max_points:g}.", field=where)
    return CriterionResult(criterion.criterion_id, points, criterion.max_points, reason)


def override_reader(override_id: str) -> str:
    """As whose assessment an override is kept."""
    return f"{HUMAN}/{override_id}"
