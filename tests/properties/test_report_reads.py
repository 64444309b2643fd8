"""Properties 5, 6 and 26: reports are read from Redis first, from Postgres once, and never stale."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from api.dependencies import Services
from api.report_reading import WrittenReport, WrittenReports, written_report
from api.singleflight import SingleFlight
from db.postgres.diagnosis_reports import PostgresDiagnosisReports
from db.postgres.pool import Postgres
from db.redis.cache import RedisReportCache
from db.redis.connection import RedisLink
from runtime.resources import Resources
from runtime.server import services

TENANT_SQL = "INSERT INTO tenants (id, name) VALUES ('local', 'Local') ON CONFLICT DO NOTHING"
FINAL_SQL = """
INSERT INTO batches (id, tenant_id, kind, name, model, status, expected_workers, max_concurrent, trace_id)
VALUES (%s, 'local', 'diagnosis', '0', 'local', 'completed', 1, 1, '')
"""
RENAME_SQL = "UPDATE batches SET name = %s WHERE id = %s"


@dataclass
class Asked:
    """Which store was asked, in order."""

    order: list[str] = field(default_factory=list)


class ToldReports(PostgresDiagnosisReports):
    """The reports of Postgres, saying when they are asked for."""

    def __init__(self, postgres: Postgres, asked: Asked) -> None:
        super().__init__(postgres)
        self._asked = asked

    async def report(self, tenant_id: str, batch_id: str) -> dict[str, Any]:
        """As the real one, which it is."""
        self._asked.order.append("postgres")
        return await super().report(tenant_id, batch_id)


class ToldCache(RedisReportCache):
    """The cache in Redis, saying when it is asked and written."""

    def __init__(self, link: RedisLink, asked: Asked) -> None:
        super().__init__(link)
        self._asked = asked

    async def read(self, batch_id: str) -> dict[str, Any] | None:
        """As the real one, which it is."""
        found = await super().read(batch_id)
        self._asked.order.append("redis" if found is None else "redis: found")
        return found

    async def write(self, batch_id: str, report: Mapping[str, Any], **how: Any) -> None:
        """As the real one, which it is."""
        await super().write(batch_id, report, **how)
        self._asked.order.append("backfilled")


def processes(resources: Resources, asked: Asked, count: int) -> list[Services]:
    """API processes, as far as they share nothing but Postgres and Redis."""
    one = replace(
        services(resources),
        diagnosis_reports=ToldReports(resources.postgres, asked),
        report_cache=ToldCache(resources.redis, asked),
    )
    return [
        replace(
            one,
            reports=SingleFlight(),
            report_writings=SingleFlight(),
            written_reports=WrittenReports(time.monotonic),
        )
        for _ in range(count)
    ]


async def final_batch(postgres: Postgres) -> str:
    batch_id = str(uuid4())
    await postgres.run(TENANT_SQL)
    await postgres.run(FINAL_SQL, [batch_id])
    return batch_id


def as_name(report: Mapping[str, Any]) -> WrittenReport:
    return WrittenReport(report["batch"]["name"].encode(), "text/plain", {})


async def read(process: Services, batch_id: str, form: str = "json") -> str:
    mark = await process.report_cache.newest_mark(batch_id)
    return (await written_report(process, ("local", batch_id, form), mark, as_name)).body.decode()


READERS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["json", "html"]), st.integers(0, 5)),
    min_size=2,
    max_size=12,
)


# ten drawn cases at a time: processes that wait for a lease look for it every 100 ms
@settings(max_examples=11)
@given(cases=st.lists(st.tuples(st.integers(1, 3), READERS), min_size=10, max_size=10))
async def test_concurrent_cold_reads_make_one_database_read(
    session_resources: Resources,
    example: Callable[[], None],
    cases: list[tuple[int, list[tuple[int, str, int]]]],
) -> None:
    """
    **功能: assay, 属性 26: 单飞读取**
    **验证: 需求 B8**

    Any set of concurrent cold reads, over any number of processes, makes one database read, and all
    of them get the same answer.
    """

    async def proved(count: int, readers: list[tuple[int, str, int]]) -> None:
        asked = Asked()
        made = processes(session_resources, asked, count)
        batch_id = await final_batch(session_resources.postgres)

        async def one(process: int, form: str, milliseconds: int) -> str:
            await asyncio.sleep(milliseconds / 1000)
            return await read(made[process % count], batch_id, form)

        answers = await asyncio.gather(*(one(*each) for each in readers))
        assert set(answers) == {"0"}
        # on a machine that stalls Redis may be thought gone, and then every process reads for itself
        assume(not session_resources.redis.degraded)
        assert asked.order.count("postgres") == 1

    await asyncio.gather(*(proved(*each) for each in cases))
    for _ in cases:
        example()


@settings(max_examples=100)
@given(before=st.lists(st.sampled_from(["read", "forget"]), max_size=4))
async def test_postgres_is_asked_after_redis_and_only_on_a_miss(
    session_resources: Resources, before: list[str]
) -> None:
    """
    **功能: architecture-deep-integration, 属性 6: 缓存查询顺序正确性**
    **验证: 需求 3.2**

    No read asks Postgres before Redis; it does only on a miss, and fills Redis then.
    """
    asked = Asked()
    [process] = processes(session_resources, asked, 1)
    batch_id = await final_batch(session_resources.postgres)
    for step in before:
        if step == "read":
            await read(process, batch_id)
        else:
            await process.report_cache.forget(batch_id)
    # what this process has written is not what is asked about
    process = replace(process, written_reports=WrittenReports(time.monotonic))
    hit = before[-1:] == ["read"]
    asked.order.clear()
    await read(process, batch_id)
    assume(not session_resources.redis.degraded)
    assert asked.order == (["redis: found"] if hit else ["redis", "redis", "postgres", "backfilled"])


STEPS = st.lists(
    st.tuples(st.sampled_from(["change", "read"]), st.integers(0, 1), st.integers(0, 4)),
    min_size=2,
    max_size=8,
)


@settings(max_examples=11)
@given(cases=st.lists(STEPS, min_size=10, max_size=10))
async def test_redis_holds_what_postgres_holds_or_nothing(
    session_resources: Resources, example: Callable[[], None], cases: list[list[tuple[str, int, int]]]
) -> None:
    """
    **功能: architecture-deep-integration, 属性 5: 写入同步一致性**
    **验证: 需求 3.1, 3.4**

    However changes and reads of two processes interleave: once a change has returned, no later read is older
    than it, and in the end Redis holds the report that Postgres holds, or none.
    """

    async def proved(steps: list[tuple[str, int, int]]) -> None:
        made = processes(session_resources, Asked(), 2)
        batch_id = await final_batch(session_resources.postgres)
        lock, returned = asyncio.Lock(), 0

        async def one(step: str, process: int, milliseconds: int) -> None:
            nonlocal returned
            await asyncio.sleep(milliseconds / 1000)
            if step == "read":
                known = returned
                assert int(await read(made[process], batch_id)) >= known
                return
            async with lock:
                written = returned + 1
                await session_resources.postgres.run(RENAME_SQL, [str(written), batch_id])
                await made[process].report_cache.forget(batch_id)
                returned = written

        await asyncio.gather(*(one(*step) for step in steps))
        cached = await made[0].report_cache.read(batch_id)
        assert cached is None or cached["batch"]["name"] == str(returned)
        assert [await read(process, batch_id) for process in made] == [str(returned)] * 2

    await asyncio.gather(*(proved(each) for each in cases))
    for _ in cases:
        example()
