"""Marks by the fitted model; the student's text is only ever compared, never followed."""

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from agents.local.calibration import Calibrated, Calibration, Observed
from agents.local.coverage import mark_code
from agents.local.expectations import Expectation, expectations, nearest
from agents.local.features import NAMES, Comparison, measure
from agents.local.parameters import Parameters, shipped
from agents.local.reading import Reading, without_copied
from agents.local.sentences import pieces
from agents.local.vectors import Vector
from domain.exam import Criterion, GradedExample, Question, QuestionType

#: shares are rounded to this: finer steps would feign a precision that is not there
STEP = 0.25
#: an expected word counts as found where the nearest word of the answer is at least so near
_FOUND_FROM = 0.6
#: so many words and none that the question does not have are an echo; fewer may choose between things named
_ECHO_LENGTH = 5
#: an answer of so few content words that has so much of the expected ones, and so little beside them, says
#: the same or the opposite; in longer ones a negation tells nothing (measured: it cost 0.05 of r there)
_STATEMENT_LENGTH = 15
_SAME_WORDS_FROM = 0.5
#: this share of the words that both have, denied by one of them alone, may turn a statement around
_TURNED_FROM = 0.15
#: the share that it costs: on the fitted questions such answers are right as often as others, but nobody
#: would believe a grader that gives "does not rise" all that it gives "rises"
_TURNED_COST = 0.25
#: what may be turned around is for a human to read
_TURNED_CONFIDENCE = 0.45
_LEAST_CONFIDENCE, _MOST_CONFIDENCE = 0.05, 0.95


@dataclass(frozen=True)
class Mark:
    """What one criterion earns: share of its points, evidence, confidence; `estimate` is not rounded.

    `turned` marks words that are there and may say the opposite. `examples` is the number of graded
    examples that the estimate was calibrated by.
    """

    share: float
    estimate: float
    quote: str
    confidence: float
    found: tuple[str, ...]
    missed: tuple[str, ...]
    turned: bool = False
    examples: int = 0


@dataclass(frozen=True)
class Answer:
    """An answer's pieces that say something: as written, and read without what the question says."""

    prompt: Reading
    pieces: tuple[str, ...]
    readings: tuple[Reading, ...]

    @cached_property
    def whole(self) -> Reading:
        """All pieces as one text."""
        return Reading.joined(self.readings)

    @cached_property
    def nearness_to_prompt(self) -> Vector:
        """For each word of the whole, how near it is to the nearest of the question's."""
        return nearest(self.prompt.nearness(self.whole), axis=0)

    @cached_property
    def starts(self) -> list[int]:
        """Where each piece begins among the words of the whole."""
        return [int(end) for end in np.cumsum([0, *(len(each.words) for each in self.readings)])][:-1]


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

    @property
    def turned(self) -> bool:
        """Whether little more than the expected words stand there, some denied or with their opposites."""
        short = self.named("length") <= math.log1p(_STATEMENT_LENGTH)
        if not short or self.named("balance_discounted") < _SAME_WORDS_FROM:
            return False
        return self.named("negation_differs") >= _TURNED_FROM or self.named("contradictions") > 0.0

    def named(self, name: str) -> float:
        """The feature of that name."""
        return float(self.features[NAMES.index(name)])


def mark_answer(question: Question, answer: str) -> list[Mark]:
    """One mark a criterion, in the rubric's order."""
    marks = [
        grader.mark(sight)
        for grader, sight in zip(_graders(question), see(question, answer, shipped()), strict=True)
    ]
    if _letters(answer) == _letters(question.reference):
        # whatever the words of single criteria say: this is the answer that was asked for
        return [
            replace(mark, share=1.0, estimate=1.0, confidence=_MOST_CONFIDENCE, missed=(), turned=False)
            for mark in marks
        ]
    return marks


def _letters(text: str) -> str:
    """The text without spaces, punctuation and letter case."""
    return "".join(each for each in text.casefold() if each.isalnum())


def see(question: Question, answer: str, parameters: Parameters) -> list[Sight]:
    """The answer as each criterion of the question sees it, before any example is looked at."""
    read = read_answer(question, answer)
    if question.type is QuestionType.CODE:
        return _see_code(question, answer, read)
    return [_see(each, read, parameters) for each in expectations(question)]


def read_answer(question: Question, answer: str) -> Answer:
    """The answer's pieces that say something, read."""
    prompt = Reading(question.prompt)
    split = [(piece, Reading(without_copied(piece, prompt))) for piece in pieces(answer)]
    kept = [(piece, reading) for piece, reading in split if reading.words]
    return Answer(prompt, tuple(piece for piece, _ in kept), tuple(reading for _, reading in kept))


def _see(expectation: Expectation, answer: Answer, parameters: Parameters) -> Sight:
    near = expectation.reading.nearness(answer.whole)
    features = measure(expectation, Comparison(answer.whole, near, answer.nearness_to_prompt))
    estimate = parameters.estimate(features) if _says_something(expectation, answer.whole) else 0.0
    found, missed = _shown(expectation, near)
    direction = _direction(expectation.prompt, answer.whole)
    observed = Observed(estimate, direction, answer.whole.stem_set)
    return Sight(observed, features, _quote(expectation, near, answer), found, missed)


def _shown(expectation: Expectation, near: Vector) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The expected words that are in the answer, and those that are not, as a reader may be shown them."""
    stems = zip(expectation.reading.stems, nearest(near, axis=1), strict=True)
    present = {stem for stem, each in stems if each >= _FOUND_FROM}
    shown = expectation.shown_words.items()
    return (
        tuple(word for stem, word in shown if stem in present),
        tuple(word for stem, word in shown if stem not in present),
    )


def _says_something(expectation: Expectation, answer: Reading) -> bool:
    """Whether the answer has words, and is no echo of the question where more than that is expected."""
    if not answer.words:
        return False
    echo = answer.stem_set <= expectation.prompt.stem_set and len(answer.words) >= _ECHO_LENGTH
    return not (echo and expectation.own.any())


def _quote(expectation: Expectation, near: Vector, answer: Answer) -> str:
    """The piece that covers most of the expectation, the first of equals."""
    if not answer.pieces:
        return ""
    scores = expectation.discounted @ np.maximum.reduceat(near, answer.starts, axis=1)
    return answer.pieces[int(np.argmax(scores))] if scores.max() > 0.0 else ""


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
            turned=sight.turned and share > 0.0,
            examples=self.calibration.count,
        )

    def drawn_apart(self, sight: Sight, calibrated: Calibrated) -> float:
        """The estimate with the spread of a teacher's marks."""
        if sight.rule_confidence is not None:
            return calibrated.estimate
        # least squares keep to the middle, the more the less they know
        spread = self.parameters.spread
        gain = 1.0 + (spread.gain - 1.0) * calibrated.openness
        drawn = np.clip(spread.centre + gain * (calibrated.estimate - spread.centre), 0.0, 1.0)
        # the examples know better what the teacher makes of such words
        taken = _TURNED_COST * calibrated.openness if sight.turned else 0.0
        return max(0.0, float(drawn) - taken)

    def _confidence(self, sight: Sight, calibrated: Calibrated, estimate: float) -> float:
        if sight.rule_confidence is None:
            confidence = self.parameters.doubt.confidence(doubt_features(sight, calibrated, estimate))
        else:
            # what the rules leave open, the examples close in part
            confidence = 1.0 - (1.0 - sight.rule_confidence) * calibrated.openness
        most = _TURNED_CONFIDENCE if sight.turned and estimate >= STEP else _MOST_CONFIDENCE
        return round(min(most, max(_LEAST_CONFIDENCE, confidence)), 2)


def doubt_features(sight: Sight, calibrated: Calibrated, estimate: float) -> Vector:
    """What the expected error is worked out from, in the order of `DOUBT_NAMES`."""
    recall, length = sight.named("recall_discounted"), sight.named("length")
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
