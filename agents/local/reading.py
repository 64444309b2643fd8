"""A text as the marks see it: its words with vectors, its runs of characters, its numbers and cues."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from agents.local.cues import denied_words, is_clueless, quantities, sided_words
from agents.local.vectors import Vector, cosines, weighted_sum, word_vectors
from agents.local.words import is_chinese, runs, stem, terms, tokens

#: words that every sentence has; fewer than `terms` leaves out: "more" and "before" are content in science
_FUNCTION_TEXT = """
a an the is are was were be been being am of to in on at by for with as it its this that these those they
them their there he she his her i you we my your our and or so then than also just very do does did has
have had will would can could should may might if because when which who what how from into out up about
"""
_FUNCTION_WORDS = frozenset(_FUNCTION_TEXT.split())
#: this many words in the question's order are the question, copied
_COPIED_RUN = 5
#: runs of so many characters are compared: words' parts in English, pairs in Chinese
_RUN_LENGTH = 4
_CHINESE_RUN_LENGTH = 2


@dataclass(frozen=True)
class Reading:
    """A text read once; what costs time is worked out when it is first asked for."""

    text: str

    @classmethod
    def joined(cls, parts: Sequence["Reading"]) -> "Reading":
        """Several texts as one, whose words are theirs, one text's after the other's."""
        whole = cls("\n".join(each.text for each in parts))
        # read once: and what is one word at the end of a part stays one
        vars(whole)["tokens"] = [token for each in parts for token in each.tokens]
        return whole

    @cached_property
    def tokens(self) -> list[str]:
        """Every word in order, lower case, contractions spelt out; pairs of Chinese characters."""
        return tokens(self.text)

    @cached_property
    def words(self) -> list[str]:
        """The words that carry content, in order."""
        return [token for token in self.tokens if token not in _FUNCTION_WORDS]

    @cached_property
    def stems(self) -> list[str]:
        """The content words' stems, in order."""
        return [stem(word) for word in self.words]

    @cached_property
    def stem_set(self) -> frozenset[str]:
        """The content words' stems."""
        return frozenset(self.stems)

    @cached_property
    def terms(self) -> frozenset[str]:
        """The stems that are left when every word without a subject of its own is out."""
        return frozenset(terms(self.text))

    @cached_property
    def vocabulary(self) -> list[str]:
        """The content words, each once."""
        return list(dict.fromkeys(self.words))

    @cached_property
    def places(self) -> NDArray[np.intp]:
        """For each content word in order, where it stands in the vocabulary."""
        place = {word: index for index, word in enumerate(self.vocabulary)}
        return np.array([place[word] for word in self.words], dtype=np.intp)

    @cached_property
    def _vectors(self) -> tuple[Vector, Vector]:
        return word_vectors(self.vocabulary)

    @cached_property
    def weights(self) -> Vector:
        """How much each content word says, in order."""
        return self._vectors[1][self.places]

    @cached_property
    def vector(self) -> Vector:
        """The text's vector: its words', weighted and added up."""
        return self.weighted(self.weights)

    def weighted(self, weights: Vector) -> Vector:
        """The words' unit vectors times these weights, one a word, added up."""
        totals = np.bincount(self.places, weights, len(self.vocabulary)).astype(np.float64)
        return weighted_sum(self._vectors[0], totals)

    def nearness(self, other: "Reading") -> Vector:
        """How near each content word (rows) is to each of the other's: 1 for one stem, else the cosine."""
        near = cosines(self._vectors[0], other._vectors[0])
        stems, others = ([stem(word) for word in each.vocabulary] for each in (self, other))
        columns: dict[str, list[int]] = {}
        for column, each in enumerate(others):
            columns.setdefault(each, []).append(column)
        for row, each in enumerate(stems):
            near[row, columns.get(each, [])] = 1.0
        return near[np.ix_(self.places, other.places)]

    @cached_property
    def character_runs(self) -> Counter[str]:
        """The runs of characters with how often each is there; punctuation and spaces are one space."""
        length = _CHINESE_RUN_LENGTH if is_chinese(self.text) else _RUN_LENGTH
        flat = " ".join(self.tokens) if length == _RUN_LENGTH else "".join(self.text.split())
        return Counter(flat[index : index + length] for index in range(len(flat) - length + 1))

    @cached_property
    def quantities(self) -> frozenset[tuple[float, str]]:
        """The numbers with their units."""
        return quantities(self.text, self.tokens)

    @cached_property
    def denied_stems(self) -> frozenset[str]:
        """The stems of the content words that a negation stands before."""
        return frozenset(stem(word) for word in denied_words(self.text, self.tokens)) & self.stem_set

    @cached_property
    def sided_words(self) -> frozenset[str]:
        """The words that have an opposite."""
        return sided_words(self.text, self.tokens)

    @cached_property
    def clueless(self) -> bool:
        """Whether the writer says not to know."""
        return is_clueless(self.text)

    def mask(self, stems: frozenset[str]) -> Vector:
        """1 for each content word among those stems, 0 for the others."""
        return np.array([each in stems for each in self.stems], dtype=np.float64)


def without_copied(text: str, prompt: Reading) -> str:
    """The text without the stretches that are the question's own, word for word."""
    copied = runs(prompt.tokens, _COPIED_RUN)
    read = tokens(text)
    if copied.isdisjoint(runs(read, _COPIED_RUN)):
        return text
    dropped: set[int] = set()
    for index in range(len(read) - _COPIED_RUN + 1):
        if tuple(read[index : index + _COPIED_RUN]) in copied:
            dropped.update(range(index, index + _COPIED_RUN))
    return " ".join(token for index, token in enumerate(read) if index not in dropped)
