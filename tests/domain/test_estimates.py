"""Estimates are generous, in bytes and not in characters, and believe a family only after many calls."""

from collections import Counter
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from agents.diagnosis.nodes import ATTEMPTS_PER_VISIT
from agents.diagnosis.rendering import BYTES_PER_TOKEN
from agents.diagnosis.state import Limits
from domain.estimates import (
    FRAME_TOKENS,
    MIN_CALLS,
    FileSize,
    estimate_batch,
    estimate_diagnosis,
    hundredths_of,
    most_tokens_in,
    tokens_factor,
)
from domain.prices import ModelPrices, Price, Unit
from tests.builders import an_exam

PRICES = ModelPrices(
    "3",
    (
        Price("openai", "small", Unit.TOKENS_IN, 150_000_000),
        Price("openai", "small", Unit.TOKENS_OUT, 600_000_000),
    ),
)


def test_a_byte_is_a_token_until_a_family_is_known() -> None:
    assert tokens_factor({}) == 1
    assert tokens_factor({30: MIN_CALLS - 1}) == 1
    assert tokens_factor({30: MIN_CALLS}) == Fraction(30, 100)


@given(st.dictionaries(st.integers(0, 1000), st.integers(1, 20_000), min_size=1))
def test_nearly_all_calls_stay_below_the_factor(calls: dict[int, int]) -> None:
    counts = Counter(calls)
    factor = tokens_factor(counts)
    if counts.total() >= MIN_CALLS:
        below = sum(count for hundredths, count in counts.items() if Fraction(hundredths, 100) <= factor)
        assert below >= Fraction(999, 1000) * counts.total()


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_a_ratio_is_counted_as_no_less_than_it_is(tokens: int, byte_count: int) -> None:
    assert hundredths_of(tokens, byte_count) >= min(1000, Fraction(100 * tokens, byte_count))


@given(st.integers(0, 10**9), st.fractions(0, 10))
def test_tokens_in_are_rounded_up_and_no_further(byte_count: int, factor: Fraction) -> None:
    most = most_tokens_in(byte_count, factor) - FRAME_TOKENS
    assert most - 1 < byte_count * factor <= most


def test_chinese_text_counts_by_its_bytes() -> None:
    text = "光合作用"
    assert most_tokens_in(len(text.encode()), Fraction(1)) >= 3 * len(text)


def test_a_batch_costs_at_most_what_it_may_and_likely_less() -> None:
    estimate = estimate_batch(
        an_exam(), [FileSize("a.txt", 2_000), FileSize("b.docx", 60_000)], "openai:small", PRICES, Fraction(1)
    )
    assert (estimate.files, estimate.likely.calls, estimate.most.calls) == (2, 2, 8)
    assert 0 < estimate.likely.cost < estimate.most.cost
    assert estimate.likely.tokens_in < estimate.most.tokens_in
    assert estimate.prices_version == "3"


def test_closed_questions_ask_no_model_and_cost_nothing() -> None:
    exam = an_exam(
        {"title": "x", "questions": [{"id": "q", "type": "exact", "prompt": "?", "points": 1, "answer": "a"}]}
    )
    estimate = estimate_batch(exam, [FileSize("a.txt", 2_000)], "openai:small", PRICES, Fraction(1))
    assert estimate.most.calls == 0
    assert estimate.most.cost == estimate.likely.cost == 0


def test_a_diagnosis_costs_at_most_what_its_agent_may_ask_however_large_the_logs_are() -> None:
    limits = Limits()
    large, huge = (
        estimate_diagnosis([FileSize("a.log", size)], "openai:small", PRICES, Fraction(1))
        for size in (10**8, 10**12)
    )
    assert large == huge
    small = estimate_diagnosis([FileSize("a.log", 100)], "openai:small", PRICES, Fraction(1))
    assert 0 < small.likely.cost < large.likely.cost < large.most.cost
    # a conclusion whose evidence is not there is asked for once more
    calls = ATTEMPTS_PER_VISIT * (limits.segments + limits.investigations + 2)
    assert large.most.calls >= calls
    assert large.most.tokens_in >= calls * limits.prompt_tokens * BYTES_PER_TOKEN
    assert large.most.tokens_out >= calls * limits.reply_tokens
