"""The public catalogue of prices that comes as a package: offline, dated, exact (L11)."""

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from domain.prices import Price, PriceList, Unit, per_million

#: our units by the catalogue's names; what is paid otherwise is not imported
_UNITS = {
    "input_mtok": Unit.TOKENS_IN,
    "output_mtok": Unit.TOKENS_OUT,
    "cache_read_mtok": Unit.TOKENS_CACHED,
}
#: charged beside the tokens of every call: a model that has one is left out, as its price would be too low
_BESIDE_TOKENS = ("requests_kcount", "output_reasoning_mtok", "output_citation_mtok")
_MILLION = 1_000_000


def catalogue() -> PriceList:
    """Every model that is paid by text tokens alone, at the prices of today."""
    import genai_prices
    from genai_prices.data_snapshot import get_snapshot

    now = datetime.now(UTC)
    prices = tuple(
        price
        for provider in get_snapshot().providers
        for model in provider.models
        for price in _prices(provider.id, model.id, model.get_prices(now))
    )
    return PriceList(f"genai-prices {genai_prices.__version__}", prices)


def canonical_name(provider: str, model: str) -> str | None:
    """The catalogue's own name of a model, such as `gpt-4o` for `gpt-4o-2024-08-06`, if it has one."""
    from genai_prices.data_snapshot import get_snapshot

    try:
        _, found = get_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        return None
    return str(found.id)


def _prices(provider: str, model: str, listed: Any) -> Iterator[Price]:
    if any(getattr(listed, name, None) is not None for name in _BESIDE_TOKENS):
        return
    if listed.input_mtok is None or listed.output_mtok is None:
        return
    for name, unit in _UNITS.items():
        listed_price = getattr(listed, name)
        for above_tokens, usd in _steps(listed_price):
            yield Price(provider, model, unit, per_million(usd, _MILLION), above_tokens)


def _steps(listed: Any) -> Iterator[tuple[int, Decimal]]:
    """The price from the first token, and from each threshold on."""
    if listed is None:
        return
    if isinstance(listed, Decimal):
        yield 0, listed
        return
    yield 0, listed.base
    for tier in listed.tiers:
        yield tier.start, tier.price
