"""What a run's marks say when they are held against the human's."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from domain.agreement import (
    Agreement,
    ConfidenceBand,
    SurerHalf,
    compare_surer_half,
    fitting_step,
    level_of,
    measure_agreement,
    reliability_table,
)
from runtime.evaluation.embedded import EMBEDDED_MODEL
from runtime.evaluation.running import Failure, Graded, Run

#: more levels than this are drawn and listed as tenths of full marks
MAX_DRAWN_LEVELS = 11


@dataclass(frozen=True)
class Basis:
    """What the figures rest on."""

    data: str
    sha256: str
    exam: str | None
    model: str
    parameters_version: str | None
    seed: int
    resamples: int
    examples_per_question: int
    blank_answers: int
    #: answers that were to be graded; fewer have been where the run was interrupted or some failed
    chosen_answers: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Human and machine marks of some answers: of all, of one question, or of one criterion."""

    label: str
    maximum: float
    step: float
    mean_human: float
    mean_machine: float
    agreement: Agreement


@dataclass(frozen=True)
class Review:
    """What the review queue would catch: the share of answers in it, and how far off both parts are."""

    flagged: int
    share: float
    error_flagged: float | None
    error_unflagged: float | None
    reasons: Mapping[str, int]


@dataclass(frozen=True)
class Usage:
    """What it took: wall time over all answers, and the latency of one model call among those at once."""

    tokens_in: int
    tokens_out: int
    cost_est_usd: str | None
    seconds: float
    milliseconds_per_answer: float
    model_calls: int
    model_milliseconds_per_call: float


@dataclass(frozen=True)
class MarkedAnswer:
    """One answer with both its marks, in its question's points."""

    line: int
    answer_id: str
    question: str
    answer: str
    human: float
    machine: float
    maximum: float
    confidence: float
    review_reasons: tuple[str, ...]

    @property
    def error(self) -> float:
        """How far off the machine is, as a share of full marks."""
        return abs(self.human - self.machine) / self.maximum


@dataclass(frozen=True)
class Evaluation:
    """Everything that `assay evaluate` tells; errors are in points of `overall.maximum`."""

    basis: Basis
    overall: Comparison
    questions: tuple[Comparison, ...]
    criteria: tuple[Comparison, ...]
    levels: tuple[str, ...]
    #: how many answers have the human's level (row) and the machine's (column)
    table: tuple[tuple[int, ...], ...]
    reliability: tuple[ConfidenceBand, ...]
    surer_half: SurerHalf | None
    review: Review
    usage: Usage
    advisory: bool
    interrupted: bool
    failures: tuple[Failure, ...]
    answers: tuple[MarkedAnswer, ...]

    def furthest(self, count: int) -> list[MarkedAnswer]:
        """The answers whose two marks are furthest apart, those first that the machine was sure of."""
        apart = [each for each in self.answers if each.error]
        return sorted(apart, key=lambda each: (-each.error, -each.confidence))[:count]


def measure(run: Run, basis: Basis, *, step: float | None) -> Evaluation:
    """Compare the run's marks with the human's; the run has graded one answer at least."""
    measuring = _Measuring(run.graded, basis, step)
    answers = tuple(_marked(each) for each in run.graded)
    overall = measuring.overall()
    levels, table = measuring.table(overall)
    errors = [each.error * overall.maximum for each in answers]
    return Evaluation(
        basis=basis,
        overall=overall,
        questions=measuring.by_question(overall),
        criteria=measuring.by_criterion(),
        levels=levels,
        table=table,
        reliability=measuring.reliability(overall),
        surer_half=measuring.surer_half(overall),
        review=_review(answers, errors),
        usage=_usage(run, basis.model),
        advisory=any(each.result.advisory for each in run.graded),
        interrupted=run.interrupted,
        failures=tuple(run.failures),
        answers=answers,
    )


class _Measuring:
    """The comparisons over one run's graded answers."""

    def __init__(self, graded: Sequence[Graded], basis: Basis, step: float | None) -> None:
        self._graded = graded
        self._basis = basis
        self._step = step

    def overall(self) -> Comparison:
        """All answers: in points where every question has the same, in shares of full marks where not."""
        maxima = {each.task.question.points for each in self._graded}
        step = self._step if len(maxima) == 1 or self._step is None else self._step / max(maxima)
        maximum = maxima.pop() if len(maxima) == 1 else 1.0
        return self._compare("all", self._pairs(maximum), maximum, step, groups=self._labels())

    def by_question(self, overall: Comparison) -> tuple[Comparison, ...]:
        """Each question in its own points, in the order of the set."""
        # of one question the marks may be too few or too much alike to tell the step
        known = {overall.maximum: overall.step}
        gathered: dict[str, list[Graded]] = {}
        for each in self._graded:
            gathered.setdefault(each.task.label, []).append(each)
        return tuple(
            self._compare(
                label,
                [(each.task.answer.mark, each.result.score) for each in some],
                some[0].task.question.points,
                self._step or known.get(some[0].task.question.points),
            )
            for label, some in gathered.items()
        )

    def by_criterion(self) -> tuple[Comparison, ...]:
        """Each criterion that the human marked, in its own points."""
        gathered: dict[str, tuple[float, list[tuple[float, float]]]] = {}
        for each in self._graded:
            for criterion in each.result.criteria:
                if criterion.criterion_id not in each.task.answer.criteria:
                    continue
                label = f"{each.task.label}/{criterion.criterion_id}"
                human = each.task.answer.criteria[criterion.criterion_id]
                gathered.setdefault(label, (criterion.max_points, []))[1].append((human, criterion.points))
        return tuple(
            self._compare(label, pairs, maximum, self._step) for label, (maximum, pairs) in gathered.items()
        )

    def reliability(self, overall: Comparison) -> tuple[ConfidenceBand, ...]:
        """What a stated confidence was worth."""
        return tuple(
            reliability_table(
                self._pairs(overall.maximum),
                self._confidences(),
                maximum=overall.maximum,
                step=overall.step,
            )
        )

    def surer_half(self, overall: Comparison) -> SurerHalf | None:
        """The surer half of all answers against the rest."""
        return compare_surer_half(
            self._pairs(overall.maximum),
            self._confidences(),
            maximum=overall.maximum,
            step=overall.step,
            resamples=self._basis.resamples,
            seed=self._basis.seed,
            groups=self._labels(),
        )

    def table(self, overall: Comparison) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
        """The levels, and how many answers have which two of them."""
        drawn = overall.step
        if overall.maximum / drawn >= MAX_DRAWN_LEVELS:
            drawn = overall.maximum / (MAX_DRAWN_LEVELS - 1)
        highest = level_of(overall.maximum, overall.maximum, drawn)
        counts = Counter(
            (level_of(human, overall.maximum, drawn), level_of(machine, overall.maximum, drawn))
            for human, machine in self._pairs(overall.maximum)
        )
        levels = range(highest + 1)
        return (
            tuple(f"{min(level * drawn, overall.maximum):.4g}" for level in levels),
            tuple(tuple(counts[human, machine] for machine in levels) for human in levels),
        )

    def _pairs(self, maximum: float) -> list[tuple[float, float]]:
        scales = [maximum / each.task.question.points for each in self._graded]
        return [
            (each.task.answer.mark * scale, each.result.score * scale)
            for each, scale in zip(self._graded, scales, strict=True)
        ]

    def _labels(self) -> list[str]:
        return [each.task.label for each in self._graded]

    def _confidences(self) -> list[float]:
        return [each.result.confidence for each in self._graded]

    def _compare(
        self,
        label: str,
        pairs: Sequence[tuple[float, float]],
        maximum: float,
        step: float | None,
        groups: Sequence[str] | None = None,
    ) -> Comparison:
        used = min(step, maximum) if step else fitting_step([human for human, _ in pairs], maximum)
        human, machine = (sum(marks) / len(pairs) for marks in zip(*pairs, strict=True))
        agreement = measure_agreement(
            pairs,
            maximum=maximum,
            step=used,
            resamples=self._basis.resamples,
            seed=self._basis.seed,
            groups=groups,
        )
        return Comparison(label, maximum, used, human, machine, agreement)


def _marked(each: Graded) -> MarkedAnswer:
    return MarkedAnswer(
        line=each.task.answer.line,
        answer_id=each.task.answer.answer_id,
        question=each.task.label,
        answer=each.task.answer.answer,
        human=each.task.answer.mark,
        machine=each.result.score,
        maximum=each.task.question.points,
        confidence=each.result.confidence,
        review_reasons=each.result.review_reasons,
    )


def _review(answers: Sequence[MarkedAnswer], errors: Sequence[float]) -> Review:
    flagged = [error for each, error in zip(answers, errors, strict=True) if each.review_reasons]
    others = [error for each, error in zip(answers, errors, strict=True) if not each.review_reasons]
    reasons = Counter(
        matter for each in answers for matter in {reason.partition(":")[0] for reason in each.review_reasons}
    )
    return Review(
        flagged=len(flagged),
        share=len(flagged) / len(answers),
        error_flagged=_mean(flagged),
        error_unflagged=_mean(others),
        reasons=dict(reasons.most_common()),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _usage(run: Run, model: str) -> Usage:
    return Usage(
        tokens_in=sum(each.result.tokens_in for each in run.graded),
        tokens_out=sum(each.result.tokens_out for each in run.graded),
        # the embedded model costs nothing; what others cost is not known here
        cost_est_usd="0" if model == EMBEDDED_MODEL else None,
        seconds=run.seconds,
        milliseconds_per_answer=1000 * run.seconds / (len(run.graded) + len(run.failures)),
        model_calls=run.calls,
        model_milliseconds_per_call=1000 * run.model_seconds / run.calls if run.calls else 0.0,
    )


def evaluation_document(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as plain JSON data."""
    document = asdict(evaluation)
    document["failures"] = [
        {
            "line": each.task.answer.line,
            "question": each.task.label,
            "code": each.code,
            "message": each.message,
        }
        for each in evaluation.failures
    ]
    return document
