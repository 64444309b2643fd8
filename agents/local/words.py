"""Texts as the terms that count: stems of words, numbers, pairs of Chinese characters."""

import re
from collections.abc import Sequence
from functools import lru_cache

_TOKEN = re.compile(r"[㐀-䶿一-鿿豈-﫿぀-ヿ]+|\d+(?:\.\d+)?|[^\W\d_㐀-䶿一-鿿豈-﫿぀-ヿ]+")
_CJK = re.compile(r"[㐀-䶿一-鿿豈-﫿぀-ヿ]")

#: words without a subject of their own
_STOP_TEXT = """
a about after all also although always am an and another any are as at back be because been before being
between both but by can cannot could did do does done each either else etc even ever every few for from
further gave get give given gives go goes got had has have having he her here him his how however i if in
into is it its itself just least less let like made make makes many may me mean means might more most much
must my namely need neither never no nobody none nor not nothing now of off often on once one only or other
others our out over own per quite rather really said same say says see seem shall she should since so some
something still such than that the their them themselves then there therefore these they thing this those
though through thus to together too under until up upon us use used uses using usually very via was way we
well were what whatever when where whether which while who whom whose why will with within without would
yes yet you your
"""
_RUBRIC_TEXT = """
answer answers clear closes compares contrast contrasts correct correctly criterion describe describes discuss
discusses explain explains give gives example examples mention mentions name names point points question
right state states student suitable
"""
#: the verbs that rubrics are written with
RUBRIC_WORDS = frozenset(_RUBRIC_TEXT.split()) | {"say", "says"}
_STOP_WORDS = frozenset(_STOP_TEXT.split()) | RUBRIC_WORDS
#: characters that only join others, and so make pairs that say nothing
_JOINING_CHARACTERS = frozenset(
    "的了是在和与及或其之也就都而但于以为对把被从到个这那有能会可要说明解释指出给答"
)
_SUFFIXES = ("ization", "isation", "ational", "fulness", "ations", "ation", "ments", "ness", "ment", "ings",
             "edly", "ing", "ied", "ies", "ers", "ed", "es", "er", "ly", "or", "s", "e", "y")  # fmt: skip


def terms(text: str) -> list[str]:
    """The terms of a text in order, repetitions included."""
    found: list[str] = []
    for token in _TOKEN.findall(text.lower()):
        if _CJK.match(token):
            found += _pairs(token)
        elif token not in _STOP_WORDS and (len(token) > 1 or token.isdigit()):
            found.append(stem(token))
    return found


def tokens(text: str) -> list[str]:
    """Every word of a text in order, in lower case, "isn't" as "is not"; Chinese as pairs of characters."""
    found: list[str] = []
    plain = text.lower().replace("’", "'").replace("can't", "can not").replace("n't", " not")
    for token in _TOKEN.findall(plain):
        found += _pairs(token) if _CJK.match(token) else [token]
    return found


def words(text: str) -> list[tuple[str, str]]:
    """The words of a text as written, each with its term; Chinese has no words to show."""
    return [
        (token, stem(token.lower()))
        for token in _TOKEN.findall(text)
        if not _CJK.match(token) and token.lower() not in _STOP_WORDS and (len(token) > 1 or token.isdigit())
    ]


def is_chinese(text: str) -> bool:
    """Whether the text has Chinese characters."""
    return _CJK.search(text) is not None


@lru_cache(maxsize=50_000)
def stem(word: str) -> str:
    """The word without a common English ending, so that "numbered" and "numbers" are the same."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3 and not word.endswith("ss"):
            stemmed = word[: -len(suffix)]
            # "mapped" is "map"
            doubled = len(stemmed) > 3 and stemmed[-1] == stemmed[-2] and stemmed[-1] not in "ls"
            return stemmed[:-1] if doubled else stemmed
    return word


def _pairs(run: str) -> list[str]:
    if len(run) == 1:
        return [] if run in _JOINING_CHARACTERS else [run]
    pairs = (run[index : index + 2] for index in range(len(run) - 1))
    return [pair for pair in pairs if not _JOINING_CHARACTERS.intersection(pair)]


def runs(sequence: Sequence[str], length: int) -> set[tuple[str, ...]]:
    """All stretches of that many terms."""
    return {tuple(sequence[index : index + length]) for index in range(len(sequence) - length + 1)}
