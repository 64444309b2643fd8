"""The persisting saga inside its workflow: a refusal is undone, an unreachable Redis fails nothing."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

import runtime.worker
from db.postgres.grading import PostgresAssessments
from db.redis.cache import RedisResultCache
from db.redis.connection import RedisLink
from domain.batch import Batch
from domain.errors import SagaStepRefused
from domain.identity import saga_id
from runtime.resources import Resources
from runtime.server import services
from tests.builders import a_submission, open_batch
from tests.workflows.plant import (
    RefusingCache,
    WatchedModel,
    all_ended,
    child_of,
    cognition,
    file_events,
    files_of,
    names,
    orchestration,
    running,
    start,
)

REFUSED_USER = "without_set"


async def check_compensated(resources: Resources, batch: Batch) -> None:
    """Nothing of the files' assessments is left, and that is said once."""
    assert batch.state == "failed"
    for file in await files_of(resources, batch):
        assert (file.state, file.failure_code) == ("failed", "saga_step_refused")
        assert (file.score, file.max_score) == (None, None)
        rows = await resources.postgres.rows(
            "SELECT 1 FROM grading_results WHERE submission_id = %s", [file.id]
        )
        assert rows == []
        saga = await resources.postgres.row(
            "SELECT * FROM saga_transactions WHERE saga_id = %s", [saga_id(file.id, 1)]
        )
        assert saga is not None
        assert saga["final_status"] == "compensated"
        assert "cache_results" in saga["error_message"]
        kinds = [kind for id_, kind, _ in await file_events(resources, batch) if id_ == file.id]
        assert [kinds.count(each) for each in ("FileAssessed", "AssessmentRetracted")] == [1, 1]
        cached = await RedisResultCache(resources.redis).read(file.id, ["q1"])
        assert cached is None


async def test_a_refusing_cache_compensates_the_saga(resources: Resources) -> None:
    batch = await open_batch(resources, {name: a_submission() for name in names(2)})
    async with running(orchestration(resources, RefusingCache), cognition(resources, WatchedModel())):
        await start(resources, batch)
        (ended,) = await all_ended(resources, batch)
    await check_compensated(resources, ended)


class StubbornCache(RefusingCache):
    """A cache that refuses what it is given, and does not even drop it until it is told to."""

    stubborn = True

    async def forget(self, submission_id: str) -> None:
        """Refuse, as long as it is stubborn."""
        if self.stubborn:
            raise SagaStepRefused("entries stay")
        await super().forget(submission_id)


async def test_a_compensation_that_fails_waits_for_a_human_and_is_tried_again(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = await open_batch(resources, {"a.json": a_submission()})
    (file,) = await files_of(resources, batch)
    async with running(orchestration(resources, StubbornCache), cognition(resources, WatchedModel())):
        await start(resources, batch)
        async with asyncio.timeout(60):
            while (await files_of(resources, batch))[0].state != "needs_intervention":
                await asyncio.sleep(0.05)
        assert (await files_of(resources, batch))[0].failure_code == "compensation_failed"
        (saga,) = await PostgresAssessments(resources.postgres).sagas("needs_intervention", 1)
        assert saga["saga_id"] == saga_id(file.id, 1)
        assert "entries stay" in saga["error_message"]
        monkeypatch.setattr(StubbornCache, "stubborn", False)
        await services(resources).orchestrator.retry_file(child_of(resources, file).id)
        (ended,) = await all_ended(resources, batch)
    await check_compensated(resources, ended)


@pytest.fixture
async def refusing(resources: Resources) -> AsyncIterator[Resources]:
    """Resources whose Redis refuses SET, as a full or restricted server does."""
    client = resources.redis.client
    await client.execute_command("ACL", "SETUSER", REFUSED_USER, "on", ">pw", "~*", "&*", "+@all", "-set")
    _, _, address = (resources.settings.redis.url.get_secret_value()).rpartition("@")  # type: ignore[union-attr]
    link = RedisLink.to(
        f"redis://{REFUSED_USER}:pw@{address.removeprefix('redis://')}", max_connections=10, timeout_seconds=2
    )
    yield replace(resources, redis=link)
    await link.close()
    await client.execute_command("ACL", "DELUSER", REFUSED_USER)


async def test_a_server_that_refuses_to_store_compensates_the_saga_and_the_batch_ends(
    refusing: Resources, resources: Resources
) -> None:
    batch = await open_batch(resources, {name: a_submission() for name in names(2)})
    async with running(orchestration(refusing), cognition(resources, WatchedModel())):
        await start(resources, batch)
        (ended,) = await all_ended(resources, batch, within_seconds=20)
    await check_compensated(resources, ended)


async def test_an_agent_does_not_need_to_show_its_state(refusing: Resources, resources: Resources) -> None:
    batch = await open_batch(resources, {name: a_submission() for name in names(2)})
    async with running(orchestration(resources), cognition(refusing, model := WatchedModel())):
        await start(resources, batch)
        (ended,) = await all_ended(resources, batch, within_seconds=20)
    assert ended.state == "completed"
    assert set(model.begun.values()) == {1}


async def test_an_unreachable_redis_fails_nothing(resources: Resources) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    link = RedisLink.to(f"redis://127.0.0.1:{port}", max_connections=10, timeout_seconds=1)
    cut_off = replace(resources, redis=link)
    batch = await open_batch(resources, {name: a_submission() for name in names(4)} | {"z.json": b"{"})
    async with running(orchestration(cut_off), cognition(cut_off, WatchedModel())):
        await start(resources, batch)
        (ended,) = await all_ended(resources, batch, within_seconds=30)
    await link.close()
    assert ended.state == "partial"
    files = await files_of(resources, batch)
    assert [file.state for file in files] == ["completed"] * 4 + ["failed"]
    assert [file.score for file in files] == [4.0] * 4 + [None]


class WaitingCache(RedisResultCache):
    """A cache that takes its time."""

    entered = asyncio.Event()
    left = asyncio.Event()

    async def write(self, submission_id: str, results: Sequence[Mapping[str, Any]], mark: str) -> None:
        """Write, when the test says so."""
        self.entered.set()
        await self.left.wait()
        await super().write(submission_id, results, mark)


async def test_a_saga_that_has_begun_ends_before_a_cancellation_is_heeded(resources: Resources) -> None:
    batch = await open_batch(resources, {name: a_submission() for name in names(3)}, max_concurrent=1)
    model = WatchedModel()
    async with running(orchestration(resources, WaitingCache), cognition(resources, model)):
        await start(resources, batch)
        await asyncio.wait_for(WaitingCache.entered.wait(), 60)
        await services(resources).orchestrator.cancel_batch(batch)
        # longer than a local activity may take: the step is tried again as a normal one
        await asyncio.sleep(2)
        WaitingCache.left.set()
        (ended,) = await all_ended(resources, batch)
    assert ended.state == "cancelled"
    first, *others = await files_of(resources, batch)
    assert (first.state, first.score) == ("completed", 4.0)
    assert [file.state for file in others] == ["cancelled", "cancelled"], "no other file has begun"
    assert {key.partition("/")[0] for key in model.begun} == {first.id}
    saga = await resources.postgres.row(
        "SELECT final_status FROM saga_transactions WHERE saga_id = %s", [saga_id(first.id, 1)]
    )
    assert saga == {"final_status": "completed"}
    told = [data["to"] for _, kind, data in await file_events(resources, batch) if kind == "StatusChanged"]
    assert sorted(told) == ["cancelled", "cancelled", "completed", "running"]


class UnheardAssessments(PostgresAssessments):
    """Assessments whose last step takes effect, and is never heard to have done so."""

    async def finish(self, file_id: str, generation: int) -> None:
        """Complete the saga, and be refused all the same."""
        await super().finish(file_id, generation)
        raise SagaStepRefused("unheard of")


async def test_a_saga_that_completed_unheard_of_is_the_end_and_not_undone(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.worker, "PostgresAssessments", UnheardAssessments)
    batch = await open_batch(resources, {"a.json": a_submission()})
    async with running(orchestration(resources), cognition(resources, WatchedModel())):
        await start(resources, batch)
        (ended,) = await all_ended(resources, batch)
    assert ended.state == "completed"
    (file,) = await files_of(resources, batch)
    assert (file.state, file.score) == ("completed", 4.0)
    assessments = PostgresAssessments(resources.postgres)
    await assessments.flag_saga(file.id, 1, "a straggler")
    (saga,) = await assessments.sagas(None, 10)
    assert saga["final_status"] == "completed"
