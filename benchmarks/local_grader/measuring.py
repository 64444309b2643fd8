"""Figures on questions that were not fitted on, through the same door as a batch: `answer_request`."""

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.grading.replies import read_reply
from agents.local.model import answer_request
from agents.local.parameters import fitted_on
from agents.local.words import terms
from benchmarks.local_grader.data import GradedQuestion
from benchmarks.local_grader.statistics import Numbers, pearson, spearman, weighted_kappa
from domain.assessment import LOW_CONFIDENCE
from domain.completion import CompletionRequest
from domain.exam import GradedExample, Question
from domain.identity import LogicalStep

Places = NDArray[np.intp]

_STEPS = 4
_SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Graded:
    """Marks as shares with their confidence, beside those that people gave."""

    given: Numbers
    confidence: Numbers
    wanted: Numbers

    def part(self, chosen: Places) -> "Graded":
        """Some of the answers."""
        return Graded(self.given[chosen], self.confidence[chosen], self.wanted[chosen])


Grade = Callable[[Question, str], tuple[float, float]]


def local(question: Question, answer: str) -> tuple[float, float]:
    """The share and the confidence that the embedded model replies."""
    step = LogicalStep("measure", 1, question.id, "all", "first")
    reply = answer_request(CompletionRequest(step, 1, "local", question, answer))
    (result,) = read_reply(reply.text, question)
    return result.points / result.max_points, result.confidence


def baseline(question: Question, answer: str) -> tuple[float, float]:
    """The share of the reference's words that the answer has: what no model is needed for."""
    wanted = set(terms(question.reference)) - set(terms(question.prompt))
    return len(wanted.intersection(terms(answer))) / max(1, len(wanted)), 0.5


def unseen(questions: Sequence[GradedQuestion]) -> list[GradedQuestion]:
    """The questions that the shipped parameters were not fitted on."""
    return [each for each in questions if not fitted_on(each.question)]


def figures(questions: Sequence[GradedQuestion], examples: int) -> dict[str, Any]:
    """All figures of one source with so many graded examples a question."""
    graded = grade_all(local, questions, examples)
    plain = grade_all(baseline, questions, examples)
    correlation, plain_correlation = pearson(graded.given, graded.wanted), pearson(plain.given, plain.wanted)
    # a stable order: the first of equals is the surer one
    order = np.argsort(-graded.confidence, kind="stable")
    surer, rest = graded.part(order[: len(order) // 2]), graded.part(order[len(order) // 2 :])
    return {
        "examples": examples,
        "questions": len(questions),
        "answers": len(graded.given),
        "pearson": correlation,
        "spearman": spearman(graded.given, graded.wanted),
        "weighted_kappa": weighted_kappa(graded.given, graded.wanted, _STEPS),
        "accuracy": _accuracy(graded),
        "mean_error": _mean_error(graded),
        "baseline_pearson": plain_correlation,
        "ratio_to_baseline": correlation / plain_correlation,
        "surer_half": {"pearson": pearson(surer.given, surer.wanted), "mean_error": _mean_error(surer)},
        "other_half": {"pearson": pearson(rest.given, rest.wanted), "mean_error": _mean_error(rest)},
        "below_review_threshold": float((graded.confidence < LOW_CONFIDENCE).mean()),
    }


def grade_all(grade: Grade, questions: Sequence[GradedQuestion], examples: int) -> Graded:
    """The marks of all answers that are no examples, over several draws of the examples."""
    rows: list[tuple[float, float, float]] = []
    for seed in _SEEDS if examples else (0,):
        for number, each in enumerate(questions):
            order = np.random.default_rng([seed, number]).permutation(len(each.answers))
            question = _with_examples(each, order[:examples])
            rows += [
                (*grade(question, each.answers[index]), each.shares[index]) for index in order[examples:]
            ]
    table = np.array(rows)
    return Graded(table[:, 0], table[:, 1], table[:, 2])


def _with_examples(graded: GradedQuestion, chosen: Places) -> Question:
    examples = tuple(GradedExample(graded.answers[index], graded.shares[index]) for index in chosen)
    return replace(graded.question, examples=examples)


def cost(questions: Sequence[GradedQuestion]) -> dict[str, float]:
    """Milliseconds an answer once warm."""
    pairs = [(each.question, answer) for each in questions for answer in each.answers]
    for question, answer in pairs:
        local(question, answer)
    begun = time.perf_counter()
    for question, answer in pairs:
        local(question, answer)
    return {
        "milliseconds_an_answer": 1_000 * (time.perf_counter() - begun) / len(pairs),
        "mean_answer_characters": float(np.mean([len(answer) for _, answer in pairs])),
    }


def peak_memory_mib() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _accuracy(graded: Graded) -> float:
    return float(((graded.given >= 0.5) == (graded.wanted >= 0.5)).mean())


def _mean_error(graded: Graded) -> float:
    return float(np.abs(graded.given - graded.wanted).mean())
