"""Price lists, and how many tokens a byte makes."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from time import monotonic

from psycopg.rows import DictRow

from db.postgres.pool import Connection, Postgres
from domain.errors import UnpricedModel
from domain.prices import ANY_MODEL, ModelPrices, Price, PriceList, split_model

ADD_LIST_SQL = """
INSERT INTO price_lists (source) VALUES (%s) ON CONFLICT (source) WHERE source <> 'own' DO NOTHING RETURNING version
"""
ADD_PRICES_SQL = """
INSERT INTO prices (version, provider, model, unit, above_tokens, nanodollars_per_million)
SELECT %(version)s, each.* FROM unnest(
    %(providers)s::text[], %(models)s::text[], %(units)s::text[], %(above_tokens)s::integer[], %(prices)s::bigint[]
) each
"""
# own rows win over imported ones, whichever is newer; then the newest list that has the model
MODEL_PRICES_SQL = """
SELECT p.version, p.provider, p.model, p.unit, p.above_tokens, p.nanodollars_per_million
FROM prices p
WHERE (p.provider, p.model) = (%(provider)s, %(model)s) AND p.version = (
    SELECT l.version FROM price_lists l JOIN prices own USING (version)
    WHERE (own.provider, own.model) = (%(provider)s, %(model)s)
    ORDER BY l.source = 'own' DESC, l.version DESC LIMIT 1)
"""
SHOW_PRICES_SQL = """
SELECT l.source, p.version, p.provider, p.model, p.unit, p.above_tokens, p.nanodollars_per_million
FROM prices p JOIN price_lists l USING (version)
WHERE (p.provider || ':' || p.model LIKE %(pattern)s OR (p.provider = 'assay' AND p.model LIKE %(pattern)s))
  AND p.version = (
    SELECT newer.version FROM price_lists newer JOIN prices own USING (version)
    WHERE (own.provider, own.model) = (p.provider, p.model)
    ORDER BY newer.source = 'own' DESC, newer.version DESC LIMIT 1)
ORDER BY p.provider, p.model, p.unit, p.above_tokens
LIMIT %(limit)s
"""
COUNT_RATIOS_SQL = """
INSERT INTO token_ratios AS known (family, hundredths, calls) VALUES (%s, %s, %s)
ON CONFLICT (family, hundredths) DO UPDATE SET calls = known.calls + EXCLUDED.calls
"""
RATIOS_SQL = "SELECT hundredths, calls FROM token_ratios WHERE family = %s"


#: a new price is in force everywhere after this time
REMEMBERED_SECONDS = 60.0


class PostgresPrices:
    """Prices by model; a model that no list has is looked for in the catalogue, which is imported once."""

    def __init__(
        self,
        postgres: Postgres,
        *,
        catalogue: Callable[[], PriceList],
        canonical: Callable[[str, str], str | None],
    ) -> None:
        self._postgres = postgres
        self._catalogue = catalogue
        self._canonical = canonical
        self._known: dict[str, tuple[ModelPrices, float]] = {}

    async def of_model(self, name: str) -> ModelPrices:
        """The model's prices, at most a minute old; raises `UnpricedModel`, which names the way out."""
        prices, read_at = self._known.get(name, (None, 0.0))
        if prices is None or monotonic() - read_at > REMEMBERED_SECONDS:
            prices = await self._look_up(name)
            self._known[name] = (prices, monotonic())
        return prices

    async def _look_up(self, name: str) -> ModelPrices:
        provider, model = split_model(name)
        found = await self._find(provider, model)
        if found is None and await self.add(self._catalogue()):
            found = await self._find(provider, model)
        if found is None and (known_as := self._canonical(provider, model)) is not None:
            found = await self._find(provider, known_as)
        found = found or await self._find(provider, ANY_MODEL)
        if found is None:
            raise UnpricedModel(
                f"There is no price for {name}. State one: assay prices set {name} --tokens-in USD "
                "--tokens-out USD (for a million tokens; 0 if it costs nothing).",
                field="model",
            )
        return found

    async def add(self, prices: PriceList) -> bool:
        """Add a list; `False` if this version of its catalogue is there already."""
        async with self._postgres.transaction() as connection:
            row = await (await connection.execute(ADD_LIST_SQL, [prices.source])).fetchone()
            if row is None:
                return False
            await _add_prices(connection, row["version"], prices.prices)
            return True

    async def show(self, pattern: str, limit: int) -> list[DictRow]:
        """The prices in force of the models whose name matches an SQL pattern."""
        return await self._postgres.rows(SHOW_PRICES_SQL, {"pattern": pattern, "limit": limit})

    async def _find(self, provider: str, model: str) -> ModelPrices | None:
        rows = await self._postgres.rows(MODEL_PRICES_SQL, {"provider": provider, "model": model})
        if not rows:
            return None
        prices = tuple(
            Price(
                row["provider"],
                row["model"],
                row["unit"],
                row["nanodollars_per_million"],
                row["above_tokens"],
            )
            for row in rows
        )
        return ModelPrices(str(rows[0]["version"]), prices)


async def _add_prices(connection: Connection, version: int, prices: Sequence[Price]) -> None:
    await connection.execute(
        ADD_PRICES_SQL,
        {
            "version": version,
            "providers": [each.provider for each in prices],
            "models": [each.model for each in prices],
            "units": [str(each.unit) for each in prices],
            "above_tokens": [each.above_tokens for each in prices],
            "prices": [each.nanodollars_per_million for each in prices],
        },
    )


class PostgresTokenRatios:
    """How many tokens a family of models makes of a byte, as counted so far."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def add(self, family: str, calls_by_hundredths: Mapping[int, int]) -> None:
        """Count more calls."""
        async with self._postgres.transaction() as connection:
            for hundredths, calls in sorted(calls_by_hundredths.items()):
                await connection.execute(COUNT_RATIOS_SQL, [family, hundredths, calls])

    async def of_family(self, family: str) -> Counter[int]:
        """Calls by hundredths of a token for a byte."""
        rows = await self._postgres.rows(RATIOS_SQL, [family])
        return Counter({row["hundredths"]: row["calls"] for row in rows})
