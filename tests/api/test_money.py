"""Money goes over the wire as decimal strings and is whole nanodollars inside."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.money import MAX_USD, NANODOLLARS, format_usd, parse_usd, with_usd


@given(st.integers(min_value=0, max_value=MAX_USD * NANODOLLARS))
def test_an_amount_survives_the_wire_exactly(nanodollars: int) -> None:
    assert parse_usd(format_usd(nanodollars)) == nanodollars


@given(st.decimals(min_value=0, max_value=MAX_USD, places=9))
def test_an_amount_is_what_decimal_arithmetic_says(amount: Decimal) -> None:
    assert parse_usd(f"{amount:f}") == int(amount * NANODOLLARS)


@pytest.mark.parametrize(
    ("text", "nanodollars"),
    [("0", 0), ("2.50", 2_500_000_000), ("0.1", 100_000_000), ("0.000000001", 1)],
)
def test_a_decimal_string_is_read_exactly(text: str, nanodollars: int) -> None:
    assert parse_usd(text) == nanodollars


@pytest.mark.parametrize(
    "value",
    [1.5, 2, True, None, "", "-1", "+1", "1e3", "1,50", " 1", "1\n", ".5", "1.", "NaN", "0.0000000001", "١"],
)
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="decimal string"):
        parse_usd(value)


def test_an_amount_over_the_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="lower limit"):
        parse_usd("1000000000.000000001")


def test_nanodollars_in_a_document_become_dollars() -> None:
    document = {"spent_nanodollars": 12_500_000, "limit_nanodollars": None, "files": 3}

    assert with_usd(document) == {"spent_usd": "0.0125", "limit_usd": None, "files": 3}
