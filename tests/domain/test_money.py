"""Money is whole nano-dollars, shown as decimal dollars, and never a float."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.money import MAX_USD, NANODOLLARS, ZERO, Money, format_usd, parse_usd

AMOUNTS = st.integers(min_value=-(10**18), max_value=10**18)


@given(st.integers(min_value=0, max_value=MAX_USD * NANODOLLARS))
def test_an_amount_is_shown_and_read_back_exactly(nanodollars: int) -> None:
    assert Money.from_usd(Money(nanodollars).usd) == nanodollars == parse_usd(format_usd(nanodollars))
    assert Decimal(str(Money(nanodollars))) * NANODOLLARS == nanodollars


@given(AMOUNTS, AMOUNTS, st.integers(-1000, 1000))
def test_arithmetic_is_that_of_whole_numbers_and_stays_money(one: int, other: int, times: int) -> None:
    results: list[tuple[Any, int]] = [
        (Money(one) + Money(other), one + other),
        (one + Money(other), one + other),
        (Money(one) - Money(other), one - other),
        (one - Money(other), one - other),
        (Money(one) * times, one * times),
        (times * Money(one), one * times),
        (-Money(one), -one),
        (sum([Money(one), Money(other)]), one + other),
    ]
    for found, expected in results:
        assert found == expected
        assert isinstance(found, Money)


@pytest.mark.parametrize("value", [1.0, "1", True, None, Decimal(1)])
def test_nothing_but_a_whole_number_becomes_money(value: Any) -> None:
    with pytest.raises(TypeError, match="nano-dollars"):
        Money(value)
    with pytest.raises(TypeError):
        ZERO + value
    with pytest.raises(TypeError):
        ZERO * value


def test_money_is_not_divided_into_floats() -> None:
    with pytest.raises(TypeError, match="round"):
        Money(3) / 2


def test_money_says_what_it_is() -> None:
    assert repr(Money(2_500_000_000)) == "Money(2.50 USD)"
    assert (str(Money(-1)), Money(12_500_000).usd) == ("-0.000000001", "0.0125")
