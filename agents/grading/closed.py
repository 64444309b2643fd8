"""Closed questions decided by rules: exact, multiple choice and numeric answers."""

import re
import unicodedata
from dataclasses import dataclass

from agents.grading.units import factor_between, is_unit
from domain.assessment import CriterionResult
from domain.exam import UNIT_PATTERN, Question, QuestionType, parse_number

MAX_QUOTE_LENGTH = 300
#: a closed answer is short; whatever follows this is not read
MAX_READ_LENGTH = 5_000

_SURE = 1.0
_LIKELY = 0.7
#: below the threshold for a human's look
_DOUBTFUL = 0.4


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, why, on which part of it, and how certain that is."""

    correct: bool
    reason: str
    quote: str
    confidence: float = _SURE


def grade_closed(question: Question, answer: str) -> CriterionResult:
    """The result of the question's only criterion; the answer is not empty."""
    rules = {
        QuestionType.EXACT: judge_exact,
        QuestionType.MULTIPLE_CHOICE: judge_choice,
        QuestionType.NUMERIC: judge_number,
    }
    verdict = rules[question.type](question, answer.strip()[:MAX_READ_LENGTH])
    (criterion,) = question.criteria
    return CriterionResult(
        criterion_id=criterion.id,
        points=criterion.points if verdict.correct else 0.0,
        max_points=criterion.points,
        reason=verdict.reason,
        quote=_shorten(verdict.quote),
        confidence=verdict.confidence,
    )


def _shorten(text: str) -> str:
    if len(text) <= MAX_QUOTE_LENGTH:
        return text
    return text[:MAX_QUOTE_LENGTH].rsplit(maxsplit=1)[0]


# --- exact ---------------------------------------------------------------------------------------

#: words beside the expected text under which it no longer is the student's answer
_HEDGES = frozenset({"not", "no", "or", "isn't", "isnt", "nicht", "kein", "oder", "不", "不是", "或", "非"})
_EXTRA_WORDS = 4
#: Chinese has no spaces between words: there the expected text may have so many characters beside it
_EXTRA_CHARACTERS = 6
_CHINESE_HEDGES = frozenset("不非或没未否吗还和与及跟 ")
_CHINESE = re.compile(r"[一-鿿]")


def judge_exact(question: Question, text: str) -> Verdict:
    """Equal to the answer or an alternative but for letter case, spaces and punctuation."""
    given = plain(text)
    accepted = [plain(each) for each in (question.answer, *question.accept)]
    if given in accepted:
        return Verdict(True, "This is the expected answer.", text)
    if any(_says_in_chinese(given, each) for each in accepted):
        return Verdict(True, "The expected answer, with a few more characters.", text, _LIKELY)
    inside = [each for each in accepted if each and f" {each} " in f" {given} "]
    if not inside:
        return Verdict(False, "This is not the expected answer.", text)
    longest = max(inside, key=len)
    extra = f" {given} ".replace(f" {longest} ", " ").split()
    if len(extra) <= _EXTRA_WORDS and not _HEDGES.intersection(extra):
        return Verdict(True, "The expected answer, with a few more words.", text, _LIKELY)
    return Verdict(False, "The expected answer only stands inside a longer text.", text, _DOUBTFUL)


def _says_in_chinese(given: str, expected: str) -> bool:
    """Whether a Chinese text is the expected one with hardly anything, and no doubt, beside it."""
    if not _CHINESE.search(expected) or expected not in given:
        return False
    extra = given.replace(expected, "", 1)
    return len(extra) <= _EXTRA_CHARACTERS and not _CHINESE_HEDGES.intersection(extra)


def plain(text: str) -> str:
    """The text in one letter case, without punctuation, words one space apart."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(each if unicodedata.category(each)[0] in "LNMS" else " " for each in folded)
    # a text of nothing but punctuation is its own plain form: "::" is no "->"
    return " ".join(kept.split()) or " ".join(folded.split())


# --- multiple choice -----------------------------------------------------------------------------

_LEAD = re.compile(
    r"^(?:(?:the\s+)?(?:correct\s+)?(?:answer|option|choice|antwort)\s*(?:is)?|答案是?|选)\s*[:：]?\s*", re.I
)
_LETTERS = re.compile(r"^\(?[A-Z]\)?(?:[\s,;/&+、和]*(?:and\s+|und\s+)?\(?[A-Z]\)?)*[).:]*$")
_ONE_MARKED = re.compile(
    r"^(?:\((?P<inner>[A-Za-z])\)|(?P<outer>[A-Za-z])\s*[).:、，,-])\s*(?P<rest>.*)$", re.DOTALL
)
_NAMED = re.compile(r"\b(?:answer|option|choice|antwort)\s+\(?([A-Za-z])\b", re.IGNORECASE)


def judge_choice(question: Question, text: str) -> Verdict:
    """The chosen letters are the expected ones, however they are written."""
    expected = [frozenset(re.findall("[A-Z]", each.upper())) for each in (question.answer, *question.accept)]
    options = {letter: plain(option) for letter, option in question.choices().items()}
    letters = frozenset().union(*expected, options)
    chosen, confidence = read_choice(text, options, letters)
    if not chosen:
        return Verdict(False, "No clear choice can be read.", text, _DOUBTFUL)
    named = ", ".join(sorted(chosen))
    if chosen in expected:
        return Verdict(True, f"{named} is correct.", text, confidence)
    return Verdict(False, f"{named} is not the correct choice.", text, confidence)


def read_choice(text: str, options: dict[str, str], letters: frozenset[str]) -> tuple[frozenset[str], float]:
    """The letters chosen, none where that is not clear, and how certain the reading is."""
    body = _LEAD.sub("", unicodedata.normalize("NFKC", text)).strip()
    if len(body) == 1 or _LETTERS.match(body):
        return frozenset(re.findall(r"[A-Z]", body.upper() if len(body) == 1 else _capitals(body))), _SURE
    if marked := _ONE_MARKED.match(body):
        letter = (marked["inner"] or marked["outer"]).upper()
        contradicted = plain(marked["rest"]) in set(options.values()) - {options.get(letter)}
        return frozenset({letter}), _DOUBTFUL if contradicted else _SURE
    same = frozenset(letter for letter, option in options.items() if option == plain(body))
    if same:
        return same, _SURE
    for found in (_NAMED.findall(body), re.findall(r"\b[A-Z]\b", body)):
        named = frozenset(each.upper() for each in found) & letters
        if named:
            return (named, _LIKELY) if len(named) == 1 else (frozenset(), _DOUBTFUL)
    return frozenset(), _DOUBTFUL


def _capitals(body: str) -> str:
    """The body without the words that join letters."""
    return re.sub(r"\b(?:and|und)\b", " ", body)


# --- numeric -------------------------------------------------------------------------------------

_NUMBER = re.compile(
    rf"""(?P<number>(?<![\w.])[-+−]?(?:\d+(?:[ \u00a0,]\d{{3}})*(?:[.,]\d+)?|\.\d+)(?:[eE][-+]?\d+)?)
        (?:\s*(?P<unit>{UNIT_PATTERN}))?""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Measure:
    """A number in a text with the word that follows it; `quote` is the stretch it stands in."""

    value: float
    unit: str
    quote: str


def judge_number(question: Question, text: str) -> Verdict:
    """The stated result is within the tolerance, in the question's unit or one that converts to it."""
    measures = read_measures(text, question.unit)
    if not measures:
        return Verdict(False, "No number can be read.", text)
    stated = _result_of(text, measures, question.unit)
    verdict = _judge_measure(question, stated)
    if verdict.correct:
        return verdict
    if any(_judge_measure(question, each).correct for each in measures):
        reason = f"{verdict.reason} Another number in the answer would be right."
        return Verdict(False, reason, verdict.quote, _DOUBTFUL)
    return verdict


def read_measures(text: str, unit: str) -> list[Measure]:
    """All numbers of the text, each with its unit if one follows."""
    measures = []
    for match in _NUMBER.finditer(text):
        value = parse_number(match["number"])
        if value is None:
            continue
        word = match["unit"] or ""
        known = word if word == unit or is_unit(word) else ""
        quote = match.group(0) if known else match["number"]
        measures.append(Measure(value, known, quote))
    return measures


def _result_of(text: str, measures: list[Measure], unit: str) -> Measure:
    """The number given as the result: the first if the text opens with it, otherwise the last.

    "180 ms (160 ms to send, 20 ms to travel)" states 180; "160 ms + 20 ms = 180 ms" does too.
    """
    if text.startswith(measures[0].quote) and "=" not in text:
        return measures[0]
    with_unit = [each for each in measures if each.unit and factor_between(each.unit, unit) is not None]
    return (with_unit or measures)[-1]


def _judge_measure(question: Question, measure: Measure) -> Verdict:
    factor = factor_between(measure.unit, question.unit) if measure.unit and question.unit else 1.0
    if factor is None:
        reason = f"The unit {measure.unit} is wrong; the result is asked for in {question.unit}."
        return Verdict(False, reason, measure.quote)
    expected = parse_number(question.answer)
    alternatives = [parse_number(each) for each in question.accept]
    within = any(
        _within(measure.value * factor, each, question.tolerance) for each in (expected, *alternatives)
    )
    if not within:
        return Verdict(False, f"{measure.quote} is not the expected result.", measure.quote)
    if question.unit and not measure.unit:
        reason = f"The number is right; the unit {question.unit} is missing."
        return Verdict(True, reason, measure.quote, _LIKELY)
    return Verdict(True, "This is the expected result.", measure.quote)


def _within(value: float, expected: float | None, tolerance: float) -> bool:
    # binary fractions: 0.18 s is 180.00000000000003 ms
    return expected is not None and abs(value - expected) <= tolerance + 1e-9 * max(1.0, abs(expected))
