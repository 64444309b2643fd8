"""The public suite for checkpointers, run on the saver in use with its fence."""

import warnings
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig

from db.postgres.checkpoints import FencedPostgresSaver
from db.postgres.pool import Postgres

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from langgraph.checkpoint.conformance import checkpointer_test, validate

from tests.db.stage import opened_postgres

EPOCH = 3


class RegisteringSaver(FencedPostgresSaver):
    """The saver itself; only each unseen thread is registered first, as an attempt's start does."""

    def __init__(self, postgres: Postgres) -> None:
        super().__init__(postgres.pool, EPOCH)
        self._postgres = postgres

    async def _register(self, thread_id: str) -> None:
        await self._postgres.run(
            "INSERT INTO agent_threads (thread_id, workflow_id, epoch) VALUES (%s, 'suite', %s)"
            " ON CONFLICT DO NOTHING",
            [thread_id, EPOCH],
        )

    async def aput(self, config: RunnableConfig, *rest: Any) -> RunnableConfig:
        await self._register(config["configurable"]["thread_id"])
        return await super().aput(config, *rest)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        await self._register(config["configurable"]["thread_id"])
        await super().aput_writes(config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        await self._register(thread_id)
        await super().adelete_thread(thread_id)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        await self._register(target_thread_id)
        await super().acopy_thread(source_thread_id, target_thread_id)


@pytest.fixture
async def postgres(database_url: str) -> AsyncIterator[Postgres]:
    async with opened_postgres(database_url) as opened:
        yield opened


async def test_the_saver_conforms_to_the_public_suite(postgres: Postgres) -> None:
    async def saver() -> Any:
        yield RegisteringSaver(postgres)

    report = await validate(checkpointer_test(name="FencedPostgresSaver")(saver))
    results = report.results
    assert {name: each.failures for name, each in results.items() if each.failures} == {}
    # `passed_all()` is true of capabilities that are not there, so the counts are what is checked
    assert sum(each.tests_failed for each in results.values()) == 0
    assert sum(each.tests_passed for each in results.values()) == 81
    assert {name for name, each in results.items() if not each.detected} == set()
    fenced = await postgres.row("SELECT count(*) AS threads FROM agent_threads WHERE epoch = %s", [EPOCH])
    assert fenced is not None
    assert fenced["threads"] > 20
