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

Vector = NDArray[np.float64]

DIMENSIONS = 256
#: words kept with their vectors: about 40 MB at most
_KEPT_WORDS = 20_000
#: a longer word is no word; its vector would cost time and say nothing
_LONGEST_WORD = 40
#: a pair of two such vectors is as long as the vector of an ordinary English noun
_CHARACTER_LENGTH = 8.5

_loading = threading.Lock()


def word_vectors(words: Sequence[str]) -> tuple[Vector, Vector]:
    """One unit vector a word, and each word's weight: how much it says, as the vectors' lengths tell."""
    if not words:
        return np.zeros((0, DIMENSIONS)), np.zeros(0)
    vectors = np.stack([_vector(word[:_LONGEST_WORD]) for word in words])
    lengths = np.linalg.norm(vectors, axis=1)
    return vectors / np.maximum(lengths, 1e-9)[:, None], lengths


@lru_cache(maxsize=_KEPT_WORDS)
def _vector(word: str) -> Vector:
    if is_chinese(word):
        return np.sum([_character_vector(each) for each in word], axis=0)
    return np.asarray(_word_llama().embed([word])[0], dtype=np.float64)


@lru_cache(maxsize=_KEPT_WORDS)
def _character_vector(character: str) -> Vector:
    """A vector of signs: two characters are as good as orthogonal, two pairs that share one are near."""
    digest = np.frombuffer(hashlib.sha256(character.encode()).digest(), dtype=np.uint8)
    return (np.unpackbits(digest) * 2.0 - 1.0) * (_CHARACTER_LENGTH / np.sqrt(DIMENSIONS))



def _word_llama() -> Any:
    """The embedded vectors, loaded once a process (0.6 s, 75 MB) from the package's own folder."""
    # without the lock, the first answers of a batch would each load them
    with _loading:
        return _load()


@lru_cache(maxsize=1)
def _load() -> Any:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    import wordllama  # 0.4 s: paid by the first answer, not by every command

    # the package configures the root logger when it is imported; the process's logging is not its to set
    root.handlers[:] = handlers
    root.setLevel(level)
    # its default looks in the wrong folder and then goes online
    return wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
