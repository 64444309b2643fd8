"""Prices: names, steps, and own lists."""

from decimal import Decimal

import pytest

from domain.errors import InvalidInput, UnpricedModel
from domain.prices import ModelPrices, Price, Unit, family_of, own_prices, per_million, split_model


def test_a_bare_name_is_an_embedded_model() -> None:
    assert split_model("local") == ("assay", "local")
    assert split_model("openai:gpt-4o") == ("openai", "gpt-4o")
    assert split_model("ollama:qwen3:8b") == ("ollama", "qwen3:8b")


@pytest.mark.parametrize(
    ("usd", "units", "expected"),
    [
        ("0.15", 1_000_000, 150_000_000),
        ("0.0375", 1_000_000, 37_500_000),
        ("0.04", 1, 40_000_000 * 1_000_000),
        ("0.0000000000000001", 1_000_000, 1),
        ("0", 1, 0),
    ],
)
def test_dollars_become_whole_nanodollars_a_million_units_and_never_less(
    usd: str, units: int, expected: int
) -> None:
    assert per_million(Decimal(usd), units) == expected


def test_the_step_that_an_input_passes_is_charged() -> None:
    prices = ModelPrices(
        "7",
        (
            Price("p", "m", Unit.TOKENS_IN, 5_000_000_000),
            Price("p", "m", Unit.TOKENS_IN, 10_000_000_000, above_tokens=200_000),
            Price("p", "m", Unit.TOKENS_OUT, 25_000_000_000),
        ),
    )
    assert prices.rates(200_000).cost({"tokens_in": 200_000}) == 1_000_000_000
    assert prices.rates(200_001).cost({"tokens_in": 200_001}) == 2_000_010_000
    assert prices.rates(1).version == "7"


def test_a_unit_without_a_price_is_not_free() -> None:
    prices = ModelPrices("1", (Price("p", "m", Unit.TOKENS_IN, 1),))
    with pytest.raises(UnpricedModel):
        prices.rates(1).cost({"tokens_in": 1, "images": 1})


def test_own_prices_are_stated_as_people_read_them() -> None:
    added = own_prices("campus:qwen3", [(Unit.TOKENS_IN, "0.15"), (Unit.IMAGES, "0.04")])
    assert added.source == "own"
    assert added.prices == (
        Price("campus", "qwen3", Unit.TOKENS_IN, 150_000_000),
        Price("campus", "qwen3", Unit.IMAGES, 40_000_000_000_000),
    )


@pytest.mark.parametrize("usd", ["-1", "NaN", "Infinity", "1e9", "x", ""])
def test_what_is_no_price_is_refused_with_its_unit(usd: str) -> None:
    with pytest.raises(InvalidInput, match="tokens_in") as caught:
        own_prices("campus:qwen3", [(Unit.TOKENS_IN, usd)])
    assert caught.value.field == "tokens_in"


def test_models_of_one_tokenizer_are_one_family() -> None:
    assert family_of("openai:gpt-4o-mini-2024-07-18") == family_of("openai:gpt-4o") == "openai:gpt-4o"
    assert family_of("openai:gpt-4o") != family_of("campus:gpt-4o")
