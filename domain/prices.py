"""Prices: dated lists of what the units of a model cost; newer lists are added, none is changed (L11)."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from functools import cached_property

from domain.errors import InvalidInput
from domain.ledger import Rates

#: the provider of the models that come along
EMBEDDED_PROVIDER = "assay"
#: an own price for every model of a provider that has none of its own
ANY_MODEL = "*"
#: own rows win over imported ones, whichever is newer
OWN_SOURCE = "own"
#: such as `local`, `openai:gpt-4o`, `ollama:qwen3:8b`, `campus:org/model`, `campus:*`
_MODEL = re.compile(r"[^\s%]{1,200}")
MAX_USD_PER_UNIT = Decimal(10_000)


class Unit(StrEnum):
    """What is counted and paid for; `tokens_cached` are part of `tokens_in`."""

    TOKENS_IN = "tokens_in"
    TOKENS_OUT = "tokens_out"
    TOKENS_CACHED = "tokens_cached"
    IMAGES = "images"
    AUDIO_SECONDS = "audio_seconds"


@dataclass(frozen=True)
class Price:
    """What a million units cost, in nano-dollars, once a call's input has more than so many tokens."""

    provider: str
    model: str
    unit: str
    nanodollars_per_million: int
    above_tokens: int = 0


@dataclass(frozen=True)
class PriceList:
    """Prices of one source at one time; `source` names the catalogue and its version."""

    source: str
    prices: tuple[Price, ...]
    version: int = 0
    created_at: datetime | None = None


@dataclass(frozen=True)
class ModelPrices:
    """All prices of one model, of one list."""

    version: str
    prices: tuple[Price, ...]

    def rates(self, tokens_in: int) -> Rates:
        """The rates for an input of that size: of each unit's steps the highest that it passes."""
        passed = max((each for each in self._rates_above if tokens_in > each), default=0)
        return self._rates_above[passed]

    @cached_property
    def _rates_above(self) -> Mapping[int, Rates]:
        """The rates from each step on; every call asks for some, and they carry their document."""
        rates, per_million = {0: Rates(self.version)}, dict[str, int]()
        for price in sorted(self.prices, key=lambda each: each.above_tokens):
            per_million[price.unit] = price.nanodollars_per_million
            rates[price.above_tokens] = Rates(self.version, dict(per_million))
        return rates


def split_model(name: str) -> tuple[str, str]:
    """Provider and model of a name such as `openai:gpt-4o`; a bare name is one of the embedded models."""
    provider, colon, model = name.partition(":")
    return (provider, model) if colon else (EMBEDDED_PROVIDER, name)


def family_of(model: str) -> str:
    """The models that share a tokenizer, roughly: the provider and the name's first two parts."""
    provider, _, name = model.rpartition(":")
    return f"{provider}:" + "-".join(name.split("-")[:2])


def per_million(usd: Decimal, units: int) -> int:
    """Nano-dollars for a million units, from dollars for that many; rounded up, as estimates are."""
    nanodollars = usd * 1_000_000_000 * 1_000_000 / units
    return int(nanodollars.to_integral_value(rounding="ROUND_CEILING"))


def own_prices(model: str, usd_by_unit: Iterable[tuple[Unit, str]]) -> PriceList:
    """A list of own prices for one model, from decimal dollars: a million tokens, one image, one second."""
    provider, bare = split_model(model)
    if not _MODEL.fullmatch(model):
        raise InvalidInput(f"model: {model!r} is no name of a model; write one such as local.", field="model")
    prices = tuple(
        Price(provider, bare, unit, per_million(_dollars(unit, usd), _priced_units(unit)))
        for unit, usd in usd_by_unit
    )
    if not prices:
        raise InvalidInput("State the price of at least one unit.", field="unit")
    return PriceList(OWN_SOURCE, prices)


def _priced_units(unit: Unit) -> int:
    return 1_000_000 if unit.startswith("tokens") else 1


def _dollars(unit: Unit, text: str) -> Decimal:
    try:
        usd = Decimal(text)
    except ArithmeticError:
        usd = Decimal("NaN")
    # NaN compares as neither
    if not (usd.is_finite() and 0 <= usd <= MAX_USD_PER_UNIT):
        raise InvalidInput(f"{unit}: {text!r} is no price; write decimal dollars, such as 0.15.", field=unit)
    return usd
