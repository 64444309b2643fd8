"""What is measured of an answer against an expectation: a row of numbers, each with a name."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.local.cues import contradictions, share_stated
from agents.local.expectations import Expectation, discounted, nearest
from agents.local.reading import Reading
from agents.local.vectors import Vector

NAMES = (
    "terms_beyond_question",
    "recall_discounted",
    "top_half_recall",
    "weakest_sentence",
    "balance_beyond_question",
    "balance_discounted",
    "character_run_recall",
    "cosine_beyond_question",
    "cosine_of_own_words",
    "copied_share",
    "length",
    "relative_length",
    "negation_differs",
    "contradictions",
    "quantities_stated",
    "clueless",
)
#: where no quantity is expected, neither stating one nor leaving it out says anything
_NO_QUANTITY = 0.5


@dataclass(frozen=True)
class Comparison:
    """An answer, with how near its words come to the expected ones."""

    reading: Reading
    #: a row for each expected word, a column for each word of the answer
    near: Vector
    #: for each word of the answer, how near it is to the nearest of the question's
    nearness_to_prompt: Vector


def measure(expectation: Expectation, compared: Comparison) -> Vector:
    """The features by `NAMES`; most lie between 0 and 1."""
    aligned = _alignment(expectation, compared)
    values = {
        **aligned,
        **_shared_words(expectation, compared.reading),
        **_character_runs(expectation.reading, compared.reading),
        **_directions(expectation, compared.reading),
        **_cues(expectation.reading, compared.reading, aligned["recall_discounted"]),
    }
    return np.array([values[name] for name in NAMES], dtype=np.float64)


def _alignment(expectation: Expectation, compared: Comparison) -> dict[str, float]:
    """Word by word: what is expected and found, and what is given and wanted."""
    expected, answer = expectation.reading, compared.reading
    found, wanted = nearest(compared.near, axis=1), nearest(compared.near, axis=0)
    own_words = 1.0 - answer.mask(expectation.prompt.stem_set)
    beyond = _mean(found, expected.weights * expectation.own)
    own = _mean(found, expectation.discounted)
    given = discounted(answer.weights, compared.nearness_to_prompt)
    return {
        "recall_discounted": own,
        "top_half_recall": _top_half(found),
        "weakest_sentence": _weakest(expectation, found),
        "balance_beyond_question": _balance(beyond, _mean(wanted, answer.weights * own_words)),
        "balance_discounted": _balance(own, _mean(wanted, given)),
    }


def _weakest(expectation: Expectation, found: Vector) -> float:
    """How much is found of the expected sentence of which least is found."""
    starts, weights = expectation.sentence_starts, expectation.reading.weights
    if not starts:
        return 0.0
    totals = np.maximum(np.add.reduceat(weights, starts), 1e-9)
    return float((np.add.reduceat(found * weights, starts) / totals).min())


def _shared_words(expectation: Expectation, answer: Reading) -> dict[str, float]:
    """What both say in the same words, and how much is said."""
    expected, prompt = expectation.reading, expectation.prompt
    return {
        "terms_beyond_question": _share(expectation.own_terms, answer.terms),
        "copied_share": float(answer.mask(prompt.stem_set).mean()) if answer.words else 1.0,
        "length": math.log1p(len(answer.words)),
        "relative_length": math.log1p(len(answer.words)) - math.log1p(len(expected.words)),
    }


def _character_runs(expected: Reading, answer: Reading) -> dict[str, float]:
    shared = (expected.character_runs & answer.character_runs).total()
    return {"character_run_recall": shared / max(1, expected.character_runs.total())}


def _directions(expectation: Expectation, answer: Reading) -> dict[str, float]:
    """The cosines of the two texts' vectors, without what both share with the question."""
    expected, prompt = expectation.reading, expectation.prompt
    axis = _unit(prompt.vector)
    own = expected.weighted(expected.weights * expectation.own)
    theirs = answer.weighted(answer.weights * (1.0 - answer.mask(prompt.stem_set)))
    return {
        "cosine_beyond_question": _cosine(
            expected.vector - (expected.vector @ axis) * axis, answer.vector - (answer.vector @ axis) * axis
        ),
        "cosine_of_own_words": _cosine(own, theirs),
    }


def _cues(expected: Reading, answer: Reading, recall: float) -> dict[str, float]:
    """What turns a statement around; an opposite matters as far as the rest is what was expected."""
    quantities, shared = expected.quantities, expected.stem_set & answer.stem_set
    return {
        "negation_differs": len(shared & (expected.denied_stems ^ answer.denied_stems)) / max(1, len(shared)),
        "contradictions": recall * min(2, contradictions(expected.sided_words, answer.sided_words)),
        "quantities_stated": share_stated(quantities, answer.quantities) if quantities else _NO_QUANTITY,
        "clueless": float(answer.clueless),
    }


def _share(expected: frozenset[Any], given: frozenset[Any]) -> float:
    return len(expected & given) / max(1, len(expected))


def _mean(values: Vector, weights: Vector) -> float:
    total = float(weights.sum())
    return float(values @ weights) / total if total > 1e-9 else 0.0


def _balance(recall: float, precision: float) -> float:
    """The harmonic mean."""
    return 2.0 * recall * precision / (recall + precision) if recall > 0 and precision > 0 else 0.0


def _top_half(found: Vector) -> float:
    kept = max(1, len(found) // 2)
    return float(np.sort(found)[::-1][:kept].mean()) if len(found) else 0.0


def _unit(vector: Vector) -> Vector:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)


def _cosine(one: Vector, other: Vector) -> float:
    return float(_unit(one) @ _unit(other))
