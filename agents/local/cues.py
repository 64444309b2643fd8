"""What turns a statement around, though its words stay: negation, opposites, other numbers and units."""

import re
from collections.abc import Iterable, Sequence

from agents.grading.units import factor_between, is_unit
from agents.local.words import tokens
from domain.exam import parse_number

_NEGATION_TEXT = """
no not never none nobody nothing neither nor cannot cant dont doesnt didnt isnt arent wasnt werent wont
wouldnt couldnt without unable fail fails failed t
"""
_NEGATIONS = frozenset(_NEGATION_TEXT.split())
#: 不 and its kin, but not where they are part of a word that denies nothing
_CHINESE_NEGATION = re.compile(r"不(?![同仅但断管])|(?<!有)没|无(?!论)|非(?!常)|未(?!来)|并非|毫无")
#: how far a negation reaches, in words and in Chinese characters
_REACH = 4
_CHINESE_REACH = 4
_CLUELESS = re.compile(
    r"\b(?:do(?:n[’']?t| not) (?:know|understand)|no idea|idk)\b|不知道|不清楚|不会做", re.IGNORECASE
)
_OPPOSED = """
more/less more/fewer greater/less increase/decrease increases/decreases increased/decreased higher/lower
high/low faster/slower fast/slow longer/shorter long/short hot/cold hotter/colder warm/cool warmer/cooler
bigger/smaller larger/smaller large/small big/small harder/softer hard/soft heavy/light heavier/lighter
up/down before/after same/different open/closed positive/negative gain/lose gained/lost yes/no true/false
left/right attract/repel evaporate/condense all/none always/never correct/incorrect can/cannot thick/thin
thicker/thinner loose/tight series/parallel conductor/insulator expand/contract expands/contracts
above/below first/last top/bottom reliable/unreliable minimum/maximum inside/outside stronger/weaker
strong/weak rise/fall rises/falls
增加/减少 增大/减小 上升/下降 升高/降低 大于/小于 高于/低于 更高/更低 更大/更小
更强/更弱 更快/更慢 更长/更短 更多/更少 较高/较低 较大/较小 较强/较弱 较快/较慢
较长/较短 较多/较少 吸热/放热 吸收/释放 相同/不同 可靠/不可靠 之前/之后 膨胀/收缩
正确/错误
"""
_PAIRS = tuple(tuple(pair.split("/")) for pair in _OPPOSED.split())
_OPPOSITES: dict[str, frozenset[str]] = {
    word: frozenset(other for pair in _PAIRS if word in pair for other in pair if other != word)
    for word in {word for pair in _PAIRS for word in pair}
}
_CHINESE_OPPOSITES = tuple(sorted(word for word in _OPPOSITES if not word.isascii()))
_COUNT_TEXT = "zero one two three four five six seven eight nine ten eleven twelve"
_COUNTS = {word: count for count, word in enumerate(_COUNT_TEXT.split())}
_QUANTITY = re.compile(r"(?<![\w.])(\d+(?:[.,]\d+)*)\s*([^\W\d_]+(?:/[a-zA-Z]+)?|%|°[CF]?|€|\$)?")


def denied_words(text: str, read: Sequence[str]) -> frozenset[str]:
    """The words that a negation stands before, at most a few words away."""
    denied: set[str] = set()
    for index, token in enumerate(read):
        if token in _NEGATIONS:
            denied.update(read[index + 1 : index + 1 + _REACH])
    for match in _CHINESE_NEGATION.finditer(text):
        denied.update(tokens(text[match.end() : match.end() + _CHINESE_REACH]))
    return frozenset(denied)


def is_clueless(text: str) -> bool:
    """Whether the text says that its writer does not know."""
    return _CLUELESS.search(text) is not None


def sided_words(text: str, tokens: Iterable[str]) -> frozenset[str]:
    """The words of the text that have an opposite."""
    return frozenset(token for token in tokens if token in _OPPOSITES) | {
        word for word in _CHINESE_OPPOSITES if word in text
    }


def contradictions(expected: frozenset[str], given: frozenset[str]) -> int:
    """How many words of the answer are the opposite of an expected word that the answer does not have."""
    return sum(1 for word in given - expected if any(other in expected - given for other in _OPPOSITES[word]))


def quantities(text: str, tokens: Iterable[str]) -> frozenset[tuple[float, str]]:
    """The numbers of the text, in digits or as English words, each with its unit or ''."""
    found = {(float(_COUNTS[token]), "") for token in tokens if token in _COUNTS}
    for digits, follower in _QUANTITY.findall(text):
        number = parse_number(digits)
        if number is not None:
            found.add((number, follower if is_unit(follower) else ""))
    return frozenset(found)


def share_stated(expected: frozenset[tuple[float, str]], given: frozenset[tuple[float, str]]) -> float:
    """The share of the expected quantities that are given, in that unit, in another or with none."""
    stated = sum(1 for wanted in expected if any(_same(wanted, each) for each in given))
    return stated / len(expected)


def _same(wanted: tuple[float, str], given: tuple[float, str]) -> bool:
    factor = factor_between(given[1], wanted[1]) if given[1] and wanted[1] else 1.0
    return factor is not None and abs(given[0] * factor - wanted[0]) <= 1e-6 * max(1.0, abs(wanted[0]))
