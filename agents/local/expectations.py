"""What a criterion looks for: its description and the sentences of the reference that go with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from agents.local.reading import Reading
from agents.local.sentences import pieces
from agents.local.vectors import Vector
from agents.local.words import RUBRIC_WORDS, is_chinese, terms, words
from domain.exam import Criterion, Question

#: a reference sentence belongs to a criterion from this share of the best one's match
_RELATED_FROM = 0.6
#: how much of a word's weight its nearness to the question takes away at most
_PROMPT_DISCOUNT = 0.9


@dataclass(frozen=True)
class Expectation:
    """One criterion's expected text, read; `sentences` are what it is made of."""

    reading: Reading
    sentences: tuple[Reading, ...]
    prompt: Reading

    @cached_property
    def own_terms(self) -> frozenset[str]:
        """The expected terms that the question does not use itself."""
        return self.reading.terms - self.prompt.terms

    @cached_property
    def own(self) -> Vector:
        """1 for each expected word that the question does not use itself."""
        return 1.0 - self.reading.mask(self.prompt.stem_set)

    @cached_property
    def nearness_to_prompt(self) -> Vector:
        """How near each expected word is to the nearest of the question's."""
        return nearest(self.reading.nearness(self.prompt), axis=1)

    @cached_property
    def discounted(self) -> Vector:
        """Each expected word's weight, less what the question gives away."""
        return discounted(self.reading.weights, self.nearness_to_prompt)

    @cached_property
    def sentence_starts(self) -> list[int]:
        """Where each sentence that has content words begins among the expected words."""
        counts = [len(each.words) for each in self.sentences]
        starts = np.cumsum([0, *counts])
        return [int(start) for start, count in zip(starts, counts, strict=False) if count]

    @cached_property
    def shown_words(self) -> dict[str, str]:
        """The expected words that a reader may be shown, by stem, the weightiest first; none are Chinese."""
        order = np.argsort(-self.discounted, kind="stable")
        written = {term: word for word, term in reversed(words(self.reading.text))}
        stems = [self.reading.stems[index] for index in order if self.own[index]]
        return {each: written[each] for each in stems if each in written and not is_chinese(each)}


def nearest(near: Vector, axis: int) -> Vector:
    """The largest along an axis, 0 where there is nothing to compare with."""
    return near.max(axis=axis) if near.shape[axis] else np.zeros(near.shape[1 - axis])


def discounted(weights: Vector, nearness_to_prompt: Vector) -> Vector:
    """Each word's weight, less the more the nearer it is to a word of the question."""
    return weights * (1.0 - _PROMPT_DISCOUNT * np.clip(nearness_to_prompt, 0.0, 1.0))


# a few hundred kilobytes each: the questions of the exams at work, not of all that ever were
@lru_cache(maxsize=200)
def expectations(question: Question) -> tuple[Expectation, ...]:
    """What each criterion of the question looks for, in the rubric's order."""
    prompt = Reading(question.prompt)
    reference = pieces(question.reference)
    return tuple(
        _expectation(_described(criterion), _related(criterion, question, reference), prompt)
        for criterion in question.criteria
    )


def _expectation(described: str, related: Sequence[str], prompt: Reading) -> Expectation:
    sentences = tuple(Reading(each) for each in (described, *related) if each)
    return Expectation(Reading.joined(sentences), sentences, prompt)


def _described(criterion: Criterion) -> str:
    """The description without the verbs of rubrics; empty if nothing else was there."""
    if is_chinese(criterion.description):
        return criterion.description if terms(criterion.description) else ""
    if not terms(criterion.description):
        return ""
    return " ".join(each for each in criterion.description.split() if each.lower() not in RUBRIC_WORDS)


def _related(criterion: Criterion, question: Question, reference: Sequence[str]) -> list[str]:
    """The reference's sentences that speak of what the criterion describes; all where it is the only one."""
    if len(question.criteria) == 1:
        return list(reference)
    described = set(terms(criterion.description))
    matches = [len(described.intersection(terms(piece))) for piece in reference]
    best = max(matches, default=0)
    least = max(1.0, _RELATED_FROM * best)
    return [piece for piece, match in zip(reference, matches, strict=True) if match >= least]
