"""Words as vectors: wordllama's for words with letters, characters' own for Chinese."""

import hashlib
import logging
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.local.words import is_chinese

Vector = NDArray[np.floating[Any]]

DIMENSIONS = 256
#: words kept with their vectors: about 20 MB at most
_KEPT_WORDS = 20_000
#: multiplications in one product up to which OpenBLAS uses a single thread
_SINGLE_THREADED = 262_144
#: a longer word is no word; its vector would cost time and say nothing
_LONGEST_WORD = 40
#: a pair of two such vectors is as long as the vector of an ordinary English noun
_CHARACTER_LENGTH = 8.5

_loading = threading.Lock()


def word_vectors(words: Sequence[str]) -> tuple[Vector, Vector]:
    """One unit vector a word, and each word's weight: how much it says, as the vectors' lengths tell."""
    if not words:
        return np.zeros((0, DIMENSIONS), dtype=np.float32), np.zeros(0)
    vectors = np.stack([_vector(word[:_LONGEST_WORD]) for word in words])
    lengths = np.linalg.norm(vectors, axis=1)
    units = np.asarray(vectors / np.maximum(lengths, 1e-9)[:, None])
    return units, lengths.astype(np.float64)


def cosines(one: Vector, other: Vector) -> Vector:
    """The cosines of two sets of unit vectors, a row for each of the first."""
    # in blocks too small for the threads of the linear algebra library: beside other work on the same cores
    # its threads wait for each other, and one answer took 50 ms instead of 2
    rows = max(1, _SINGLE_THREADED // (DIMENSIONS * max(1, len(other))))
    columns = max(1, _SINGLE_THREADED // (DIMENSIONS * rows))
    found = np.empty((len(one), len(other)), dtype=np.float32)
    for row in range(0, len(one), rows):
        for column in range(0, len(other), columns):
            found[row : row + rows, column : column + columns] = (
                one[row : row + rows] @ other[column : column + columns].T
            )
    return found


def weighted_sum(vectors: Vector, weights: Vector) -> Vector:
    """The vectors times their weights, added up; like `cosines` without threads."""
    return np.asarray(np.einsum("ij,i->j", vectors, weights), dtype=np.float64)


@lru_cache(maxsize=_KEPT_WORDS)
def _vector(word: str) -> Vector:
    if is_chinese(word):
        return np.asarray(sum(_character_vector(each) for each in word))
    return np.asarray(_word_llama().embed([word])[0], dtype=np.float32)


@lru_cache(maxsize=_KEPT_WORDS)
def _character_vector(character: str) -> Vector:
    """A vector of signs: two characters are as good as orthogonal, two pairs that share one are near."""
    digest = np.frombuffer(hashlib.sha256(character.encode()).digest(), dtype=np.uint8)
    signs = np.unpackbits(digest).astype(np.float32) * 2.0 - 1.0
    return np.asarray(signs * (_CHARACTER_LENGTH / np.sqrt(DIMENSIONS)), dtype=np.float32)


def _word_llama() -> Any:
    """The embedded vectors, loaded once a process (0.6 s, 75 MB) from the package's own folder."""
    # without the lock, the first answers of a batch would each load them
    with _loading:
        return _load()


@lru_cache(maxsize=1)
def _load() -> Any:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # 0.4 s: paid by the first answer, not by every command
    import wordllama  # type: ignore[import-untyped]  # the package ships no types

    # the package configures the root logger when it is imported; the process's logging is not its to set
    root.handlers[:] = handlers
    root.setLevel(level)
    # its default looks in the wrong folder and then goes online
    return wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
