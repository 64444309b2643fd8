"""The ledger against its single-threaded model, by seeds: a batch of them here, 1,000 by `make prove`."""

from collections import Counter
from collections.abc import AsyncIterator

import pytest

from db.postgres.pool import Postgres
from tests.db.stage import opened_postgres
from tests.properties.ledger_harness import proved

#: the seeds of every run; the long form takes up where they end
SEEDS, LONG = range(40), range(60, 1060)


@pytest.fixture
async def postgres(database_url: str) -> AsyncIterator[Postgres]:
    async with opened_postgres(database_url) as opened:
        yield opened


async def _run(seeds: range, url: str, postgres: Postgres) -> Counter[str]:
    struck: Counter[str] = Counter()
    for seed in seeds:
        try:
            struck.update(await proved(seed, url, postgres))
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
    return struck


async def test_a_batch_of_seeds(database_url: str, postgres: Postgres) -> None:
    struck = await _run(SEEDS, database_url, postgres)
    assert min(struck[each] for each in ("kills", "cuts", "cancelled", "repeated", "late", "jumps")) > 0, (
        struck
    )


@pytest.mark.long
@pytest.mark.timeout(3000)
async def test_a_thousand_seeds(database_url: str, postgres: Postgres) -> None:
    struck = await _run(LONG, database_url, postgres)
    assert min(struck[each] for each in ("kills", "cuts", "cancelled", "repeated", "late", "jumps")) > 100, (
        struck
    )
