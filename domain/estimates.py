"""Estimates: what calls and batches cost before they are made; generous, never short (L2, X8)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from domain.completion import DEFAULT_MAX_TOKENS
from domain.exam import Exam, Question
from domain.money import Money
from domain.prices import ModelPrices

#: a family's ratio of tokens to bytes is believed from so many calls on; before, a byte is a token
MIN_CALLS = 10_000
_PERCENTILE = Fraction(999, 1000)
#: the frame that a provider puts around messages and schema, in tokens
FRAME_TOKENS = 200

#: the rules, the rubric's frame and the schema of a rendered prompt, in bytes; a test holds it to that
PROMPT_BYTES = 9_000
CRITERION_BYTES = 700
#: a question is asked for once, and up to so often where replies or quotes are no good
MOST_CALLS = 4
#: earlier replies that a repair shows again, in bytes
REPAIR_BYTES = 2 * 4 * 8_000
#: a reply's room, which doubles once where a reply was cut
_TOKENS_PER_REPLY = 500
_TOKENS_PER_CRITERION = 300
_MORE_ROOM = 2
#: what a grader writes about a criterion, in tokens
LIKELY_TOKENS = 120
#: English text makes a token of about four bytes, Chinese one of about two
_LIKELY_FACTOR = Fraction(1, 3)
#: an office document or a PDF is larger than its text
_LIKELY_TEXT_BYTES = 4_000
_TEXT_SUFFIXES = (".txt", ".md", ".json", ".csv", ".ipynb")

#: a diagnosis looks for lines and concludes; at most, a long summary is surveyed in segments before, the
#: conclusion is asked for again where its evidence is not there, and every call is repaired
DIAGNOSIS_CALLS = 3
MOST_DIAGNOSIS_CALLS = 24
#: what one prompt of a diagnosis has at most, in bytes, and its reply in tokens; a test asks the agent
DIAGNOSIS_PROMPT_BYTES = 96_000
MOST_DIAGNOSIS_TOKENS = 6_000
_LIKELY_DIAGNOSIS_TOKENS = 1_200


def tokens_factor(calls_by_hundredths: Mapping[int, int]) -> Fraction:
    """Tokens for a byte that 99.9 % of a family's calls stay below; 1 until enough are known."""
    calls = sum(calls_by_hundredths.values())
    if calls < MIN_CALLS:
        return Fraction(1)
    seen = 0
    for hundredths, count in sorted(calls_by_hundredths.items()):
        seen += count
        if seen >= _PERCENTILE * calls:
            return Fraction(hundredths, 100)
    raise AssertionError("the counts add up to their sum")


def hundredths_of(tokens: int, byte_count: int) -> int:
    """The ratio as it is counted: in hundredths of a token for a byte, rounded up, at most ten tokens."""
    return min(1_000, ceil(Fraction(100 * tokens, max(1, byte_count))))


def most_tokens_in(byte_count: int, factor: Fraction) -> int:
    """The tokens that an input of so many bytes has at most."""
    return -(-byte_count * factor.numerator // factor.denominator) + FRAME_TOKENS


@dataclass(frozen=True)
class CostRange:
    """Calls, tokens and money."""

    calls: int
    tokens_in: int
    tokens_out: int
    cost: Money


@dataclass(frozen=True)
class BatchEstimate:
    """What a batch will cost: as usual, and at most, with every reply as long as may be and repaired."""

    files: int
    model: str
    prices_version: str
    likely: CostRange
    most: CostRange


@dataclass(frozen=True)
class FileSize:
    """A file's name and how many bytes it has; the name tells whether its bytes are its text."""

    name: str
    size_bytes: int

    @property
    def likely_text_bytes(self) -> int:
        """How much of it is text, roughly."""
        if self.name.lower().endswith(_TEXT_SUFFIXES):
            return self.size_bytes
        return min(self.size_bytes, _LIKELY_TEXT_BYTES)


def estimate_batch(
    exam: Exam, files: Sequence[FileSize], model: str, prices: ModelPrices, factor: Fraction
) -> BatchEstimate:
    """What grading these files costs; only open questions are put to a model."""
    asked = [question for question in exam.questions if not question.type.closed]
    calls = len(files) * len(asked)
    prompts = sum(prompt_bytes(question) for question in asked)
    replies = sum(most_tokens_out(question) for question in asked)
    likely_replies = LIKELY_TOKENS * sum(len(question.criteria) for question in asked)
    # each question's call reads its own answer: together they are the file
    sizes = sum(file.size_bytes for file in files) if asked else 0
    likely_sizes = sum(file.likely_text_bytes for file in files) if asked else 0
    most_bytes = len(files) * (prompts + len(asked) * REPAIR_BYTES) + sizes
    most_in = ceil(most_bytes * factor) + FRAME_TOKENS * calls
    likely_in = ceil((len(files) * prompts + likely_sizes) * _LIKELY_FACTOR)
    return BatchEstimate(
        files=len(files),
        model=model,
        prices_version=prices.version,
        likely=_range(calls, likely_in, len(files) * likely_replies, prices),
        most=_range(MOST_CALLS * calls, MOST_CALLS * most_in, MOST_CALLS * len(files) * replies, prices),
    )


def estimate_diagnosis(
    files: Sequence[FileSize], model: str, prices: ModelPrices, factor: Fraction
) -> BatchEstimate:
    """What diagnosing these logs costs: an agent reads a summary of bounded size, and not the logs."""
    # a small batch's summary quotes most of it; a large one's is as long as a prompt may be
    size = min(sum(file.size_bytes for file in files), DIAGNOSIS_PROMPT_BYTES)
    likely_in = ceil(DIAGNOSIS_CALLS * (PROMPT_BYTES + size) * _LIKELY_FACTOR)
    most_in = (
        ceil(MOST_DIAGNOSIS_CALLS * DIAGNOSIS_PROMPT_BYTES * factor) + FRAME_TOKENS * MOST_DIAGNOSIS_CALLS
    )
    return BatchEstimate(
        files=len(files),
        model=model,
        prices_version=prices.version,
        likely=_range(DIAGNOSIS_CALLS, likely_in, DIAGNOSIS_CALLS * _LIKELY_DIAGNOSIS_TOKENS, prices),
        most=_range(MOST_DIAGNOSIS_CALLS, most_in, MOST_DIAGNOSIS_CALLS * MOST_DIAGNOSIS_TOKENS, prices),
    )


def most_tokens_out(question: Question) -> int:
    """The room of the longest reply about the question."""
    least = _TOKENS_PER_REPLY + _TOKENS_PER_CRITERION * len(question.criteria)
    return _MORE_ROOM * max(DEFAULT_MAX_TOKENS, least)


def _range(calls: int, tokens_in: int, tokens_out: int, prices: ModelPrices) -> CostRange:
    # the step of a price is decided call by call
    rates = prices.rates(tokens_in // max(1, calls))
    cost = rates.cost({"tokens_in": tokens_in, "tokens_out": tokens_out})
    return CostRange(calls, tokens_in, tokens_out, cost)


def prompt_bytes(question: Question) -> int:
    """What a rendered prompt for the question has at most, without the answer."""
    return PROMPT_BYTES + CRITERION_BYTES * len(question.criteria) + _bytes(_texts(question))


def _texts(question: Question) -> Iterable[str]:
    yield from (question.prompt, question.reference, question.guidelines)
    for criterion in question.criteria:
        yield criterion.id
        # in the prompt, and once more in the schema
        yield 2 * criterion.description
    for example in question.examples:
        yield example.answer


def _bytes(texts: Iterable[str]) -> int:
    return sum(len(text.encode()) for text in texts)
