"""Marks by the fitted model; the student's text is only ever compared, never followed."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from agents.local.calibration import Calibrated, Calibration, Observed
from agents.local.coverage import mark_code
from agents.local.expectations import Expectation, expectations, nearness
from agents.local.features import NAMES, measure
from agents.local.parameters import Parameters, shipped
from agents.local.reading import Reading, without_copied
from agents.local.sentences import pieces
from agents.local.vectors import Vector
from domain.exam import Criterion, GradedExample, Question, QuestionType

#: shares are rounded to this: finer steps would feign a precision that is not there
STEP = 0.25
#: an idea may spread over so many sentences
_WINDOW = 3
#: an expected word counts as found where the nearest word of the answer is at least so near
_FOUND_FROM = 0.6
#: so many words, and none that the question does not have: an echo. Fewer may be a choice between things named
_ECHO_LENGTH = 5
_LEAST_CONFIDENCE, _MOST_CONFIDENCE = 0.05, 0.95


@dataclass(frozen=True)
class Mark:
    """What one criterion earns: share of its points, evidence, confidence; `estimate` is not rounded.

    `examples` is the number of graded examples that the estimate was calibrated by.
    """

    share: float
    estimate: float
    quote: str
    confidence: float
    found: tuple[str, ...]
    missed: tuple[str, ...]
    examples: int = 0


@dataclass(frozen=True)
class Answer:
    """An answer's pieces that say something: as written, and read without what the question says."""

    pieces: tuple[str, ...]
    readings: tuple[Reading, ...]

    @cached_property
    def whole(self) -> Reading:
        """All pieces as one text."""
        return self.part(0, len(self.readings))

    @cached_property
    def starts(self) -> list[int]:
        """Where each piece begins among the words of the whole."""
        return [0, *(int(end) for end in np.cumsum([len(each.words) for each in self.readings])[:-1])]

    def part(self, start: int, end: int) -> Reading:
        """Some pieces that follow each other as one text."""
        return Reading("\n".join(each.text for each in self.readings[start:end]))


@dataclass(frozen=True)
class Sight:
    """An answer as one criterion sees it."""

    observed: Observed
    features: Vector
    quote: str = ""
    found: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    #: how sure the rules are, where rules decided and not the fitted model
    rule_confidence: float | None = None


def mark_answer(question: Question, answer: str) -> list[Mark]:
    """One mark a criterion, in the rubric's order."""
    return [
        grader.mark(sight)
        for grader, sight in zip(_graders(question), see(question, answer, shipped()), strict=True)
    ]


def see(question: Question, answer: str, parameters: Parameters) -> list[Sight]:
    """The answer as each criterion of the question sees it, before any example is looked at."""
    read = read_answer(question, answer)
    if question.type is QuestionType.CODE:
        return _see_code(question, answer, read)
    alone = len(question.criteria) == 1
    return [_see(each, read, parameters, alone=alone) for each in expectations(question)]


def read_answer(question: Question, answer: str) -> Answer:
    """The answer's pieces that say something, read."""
    prompt = Reading(question.prompt)
    split = [(piece, Reading(without_copied(piece, prompt))) for piece in pieces(answer)]
    kept = [(piece, reading) for piece, reading in split if reading.words]
    return Answer(tuple(piece for piece, _ in kept), tuple(reading for _, reading in kept))


def _see(expectation: Expectation, answer: Answer, parameters: Parameters, *, alone: bool) -> Sight:
    scores = _piece_scores(expectation, answer)
    focus = answer.whole if alone else _window(expectation, answer)
    features = measure(expectation, focus)
    near = nearness(expectation.reading, answer.whole)
    estimate = parameters.estimate(features) if _says_something(expectation, answer.whole) else 0.0
    found = {stem for stem, each in zip(expectation.reading.stems, near, strict=True) if each >= _FOUND_FROM}
    shown = expectation.shown_words
    return Sight(
        Observed(estimate, _direction(expectation.prompt, focus), focus.stem_set),
        features,
        quote=answer.pieces[int(np.argmax(scores))] if len(scores) and scores.max() > 0 else "",
        found=tuple(word for stem, word in shown.items() if stem in found),
        missed=tuple(word for stem, word in shown.items() if stem not in found),
    )


def _says_something(expectation: Expectation, answer: Reading) -> bool:
    """Whether the answer has words, and is no echo of the question where more than that is expected."""
    if not answer.words:
        return False
    echo = answer.stem_set <= expectation.prompt.stem_set and len(answer.words) >= _ECHO_LENGTH
    return not (echo and expectation.own.any())


def _nearness_by_piece(expectation: Expectation, answer: Answer) -> Vector:
    """How near each expected word (rows) comes in each piece of the answer (columns)."""
    expected, whole = expectation.reading, answer.whole
    if not expected.words or not whole.words:
        return np.zeros((len(expected.words), len(answer.pieces)))
    near = expected.units @ whole.units.T
    near[np.array(expected.stems)[:, None] == np.array(whole.stems)[None, :]] = 1.0
    return np.asarray(np.maximum.reduceat(near, answer.starts, axis=1))


def _piece_scores(expectation: Expectation, answer: Answer) -> Vector:
    """How much of the expectation each piece covers, not to scale."""
    return np.asarray(expectation.discounted @ _nearness_by_piece(expectation, answer))


def _window(expectation: Expectation, answer: Answer) -> Reading:
    """The neighbouring pieces that cover most of the expectation together, the first of equals."""
    near = _nearness_by_piece(expectation, answer)
    if near.shape[1] <= _WINDOW:
        return answer.whole
    windows = np.lib.stride_tricks.sliding_window_view(near, _WINDOW, axis=1).max(axis=2)
    start = int(np.argmax(expectation.discounted @ windows))
    return answer.part(start, start + _WINDOW)


def _direction(prompt: Reading, answer: Reading) -> Vector:
    """The direction of what the answer says beside the question; zeros where it says nothing."""
    axis = prompt.vector / max(float(np.linalg.norm(prompt.vector)), 1e-9)
    rest = answer.vector - (answer.vector @ axis) * axis
    return np.asarray(rest / max(float(np.linalg.norm(rest)), 1e-9))


def _see_code(question: Question, answer: str, read: Answer) -> list[Sight]:
    """Code is no prose, and the fitted model has seen none: rules on its names and keywords instead."""
    prompt, features = Reading(question.prompt), np.zeros(len(NAMES))
    direction = _direction(prompt, read.whole)
    return [
        Sight(
            Observed(each.share, direction, read.whole.stem_set),
            features,
            each.quote,
            each.found,
            each.missed,
            each.confidence,
        )
        for each in mark_code(question, answer)
    ]


@dataclass(frozen=True)
class Grader:
    """One criterion with its calibration: what an answer is worth after the teacher's examples."""

    parameters: Parameters
    calibration: Calibration

    def mark(self, sight: Sight) -> Mark:
        """The criterion's mark."""
        calibrated = self.calibration(sight.observed)
        estimate = self.drawn_apart(sight, calibrated)
        share = round(round(estimate / STEP) * STEP, 2)
        return Mark(
            share=share,
            estimate=estimate,
            quote=sight.quote if share else "",
            confidence=self._confidence(sight, calibrated, estimate),
            found=sight.found,
            missed=sight.missed,
            examples=self.calibration.count,
        )

    def drawn_apart(self, sight: Sight, calibrated: Calibrated) -> float:
        """The estimate with the spread of a teacher's marks."""
        if sight.rule_confidence is not None:
            return calibrated.estimate
        # least squares keep to the middle, the more the less they know
        spread = self.parameters.spread
        gain = 1.0 + (spread.gain - 1.0) * calibrated.openness
        return float(np.clip(spread.centre + gain * (calibrated.estimate - spread.centre), 0.0, 1.0))

    def _confidence(self, sight: Sight, calibrated: Calibrated, estimate: float) -> float:
        if sight.rule_confidence is None:
            confidence = self.parameters.doubt.confidence(doubt_features(sight, calibrated, estimate))
        else:
            # what the rules leave open, the examples close in part
            confidence = 1.0 - (1.0 - sight.rule_confidence) * calibrated.openness
        return round(min(_MOST_CONFIDENCE, max(_LEAST_CONFIDENCE, confidence)), 2)


def doubt_features(sight: Sight, calibrated: Calibrated, estimate: float) -> Vector:
    """What the expected error is worked out from, in the order of `DOUBT_NAMES`."""
    recall, length = (sight.features[NAMES.index(name)] for name in ("recall_discounted", "length"))
    return np.array([1.0, abs(estimate - 0.5), estimate, calibrated.deviation, recall, length])


# the examples are read once for a batch, not once for each of its answers
@lru_cache(maxsize=200)
def _graders(question: Question) -> tuple[Grader, ...]:
    return graders(question, shipped())


def graders(question: Question, parameters: Parameters) -> tuple[Grader, ...]:
    """A grader for each criterion, calibrated by the question's graded examples."""
    seen = [see(question, example.answer, parameters) for example in question.examples]
    return tuple(
        Grader(
            parameters,
            Calibration(
                parameters.kernel,
                [sights[index].observed for sights in seen],
                [_share(question, criterion, example) for example in question.examples],
            ),
        )
        for index, criterion in enumerate(question.criteria)
    )


def _share(question: Question, criterion: Criterion, example: GradedExample) -> float:
    """The share of the criterion's points that a teacher gave; of all points, where only the sum is known."""
    points = dict(example.by_criterion).get(criterion.id)
    if points is not None:
        return min(1.0, max(0.0, points / criterion.points))
    most = min(question.points, sum(each.points for each in question.criteria))
    return min(1.0, max(0.0, example.points / most))
