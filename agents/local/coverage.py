"""Rules for code: marks from the names and words that it shares with the reference and the rubric."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from agents.local.sentences import pieces
from agents.local.words import is_chinese, runs, terms, words
from domain.exam import Criterion, Question

#: coverage from which a criterion earns half and all of its points; set on the demo's hand marks
HALF_FROM = 0.2
FULL_FROM = 0.55

#: a reference sentence belongs to a criterion from this share of the best one's match
_RELATED_FROM = 0.6
_REFERENCE_WEIGHT = 0.7
#: this many terms in the question's order are the question, copied
_COPIED_RUN = 4
#: an idea may spread over so many sentences
_WINDOW = 3
_WINDOW_SHARE = 0.5
_LENGTH_EXPONENT = 0.6
#: what lines of code have and sentences do not
_CODE = re.compile(r"[={}\[\];]|\w\(|:\s*$|^\s*(?:return|raise|import|else|throw)\b")
#: at this distance from the nearest threshold the rules are as certain as they get
_CERTAIN_DISTANCE = 0.1


@dataclass(frozen=True)
class CodeMark:
    """What one criterion earns by its words: share of its points, evidence, and how clear it is."""

    share: float
    quote: str
    confidence: float
    found: tuple[str, ...]
    missed: tuple[str, ...]


@dataclass(frozen=True)
class Expectation:
    """The weighted terms that one criterion looks for, and how they were written."""

    weights: Mapping[str, float]
    written: Mapping[str, str]

    @property
    def enough(self) -> float:
        """The weight that counts as everything: nobody repeats all words of a long expectation."""
        return float(sum(self.weights.values()) ** _LENGTH_EXPONENT)


@dataclass(frozen=True)
class AnswerTerms:
    """An answer's pieces and the terms of each, without what is copied from the question."""

    pieces: Sequence[str]
    terms: Sequence[frozenset[str]]

    @property
    def all_terms(self) -> frozenset[str]:
        """The terms of the whole answer."""
        return frozenset().union(*self.terms)


def mark_code(question: Question, answer: str) -> list[CodeMark]:
    """One mark a criterion, in the rubric's order."""
    read = read_answer(question, answer)
    return [mark_criterion(expectation, read) for expectation in expectations(question)]


def read_answer(question: Question, answer: str) -> AnswerTerms:
    """The answer's pieces with their terms."""
    copied = runs(terms(question.prompt), _COPIED_RUN)
    split = [piece for piece in pieces(answer) if _CODE.search(piece)]
    return AnswerTerms(split, [frozenset(_without_runs(terms(piece), copied)) for piece in split])


def _without_runs(sequence: list[str], copied: set[tuple[str, ...]]) -> list[str]:
    """The terms that are in none of the copied stretches."""
    dropped: set[int] = set()
    for index in range(len(sequence) - _COPIED_RUN + 1):
        if tuple(sequence[index : index + _COPIED_RUN]) in copied:
            dropped.update(range(index, index + _COPIED_RUN))
    return [term for index, term in enumerate(sequence) if index not in dropped]


@lru_cache(maxsize=200)
def expectations(question: Question) -> tuple[Expectation, ...]:
    """What each criterion looks for: its description's terms and those of the reference that go with it.

    The question's words count in full: code uses the names that it was told to use.
    """
    reference = [(piece, frozenset(terms(piece))) for piece in pieces(question.reference)]
    spread = Counter(term for criterion in question.criteria for term in set(terms(criterion.description)))
    return tuple(_expectation(criterion, reference, spread) for criterion in question.criteria)


def _expectation(
    criterion: Criterion,
    reference: Sequence[tuple[str, frozenset[str]]],
    spread: Mapping[str, int],
) -> Expectation:
    described = frozenset(terms(criterion.description))
    related = _related(described, reference)
    weights = dict.fromkeys(described, 1.0)
    for _, piece_terms in related:
        for term in piece_terms - described:
            weights[term] = _REFERENCE_WEIGHT
    for term in weights:
        # a term of several criteria tells little about any of them
        weights[term] /= max(1, spread.get(term, 1))
    return Expectation(weights, _written([criterion.description, *(text for text, _ in related)]))


def _related(
    described: frozenset[str], reference: Sequence[tuple[str, frozenset[str]]]
) -> list[tuple[str, frozenset[str]]]:
    """The reference's sentences that speak of what the criterion describes."""
    best = max((len(described & piece_terms) for _, piece_terms in reference), default=0)
    return [each for each in reference if best and len(described & each[1]) >= _RELATED_FROM * best]


def _written(texts: Iterable[str]) -> dict[str, str]:
    """How each term was written first."""
    written: dict[str, str] = {}
    for text in texts:
        for word, term in words(text):
            written.setdefault(term, word)
    return written


def mark_criterion(expectation: Expectation, read: AnswerTerms) -> CodeMark:
    """The criterion's mark: how much of what it looks for is in the answer, close together or at all."""
    quote, piece_coverage = _best_piece(expectation, read)
    present = read.all_terms & expectation.weights.keys()
    window = max((_coverage(expectation, each) for each in _windows(read.terms)), default=0.0)
    coverage = _WINDOW_SHARE * window + (1 - _WINDOW_SHARE) * _coverage(expectation, present)
    share = 1.0 if coverage >= FULL_FROM else 0.5 if coverage >= HALF_FROM else 0.0
    return CodeMark(
        share=share,
        quote=quote if share and piece_coverage else "",
        confidence=_confidence(coverage),
        found=_shown(expectation, present),
        missed=_shown(expectation, expectation.weights.keys() - present),
    )


def _best_piece(expectation: Expectation, read: AnswerTerms) -> tuple[str, float]:
    """The piece that covers most, the first of equals."""
    best, best_coverage = "", 0.0
    for piece, piece_terms in zip(read.pieces, read.terms, strict=True):
        coverage = _coverage(expectation, piece_terms)
        if coverage > best_coverage:
            best, best_coverage = piece, coverage
    return best, best_coverage


def _windows(all_terms: Sequence[frozenset[str]]) -> Iterable[frozenset[str]]:
    for index in range(len(all_terms)):
        yield frozenset().union(*all_terms[index : index + _WINDOW])


def _coverage(expectation: Expectation, present: Iterable[str]) -> float:
    """The weight of the expected terms that are there, as a share of all."""
    weights = expectation.weights
    found = sum(weights[term] for term in present if term in weights)
    return min(1.0, found / expectation.enough) if weights else 0.0


def _confidence(coverage: float) -> float:
    distance = min(abs(coverage - HALF_FROM), abs(coverage - FULL_FROM))
    return round(min(0.95, 0.05 + 0.9 * distance / _CERTAIN_DISTANCE), 2)


def _shown(expectation: Expectation, some_terms: Iterable[str]) -> tuple[str, ...]:
    """The terms as words for a reader, the weightiest first; Chinese pairs are no words."""
    ranked = sorted(some_terms, key=lambda term: (-expectation.weights[term], term))
    return tuple(expectation.written.get(term, term) for term in ranked if not is_chinese(term))
