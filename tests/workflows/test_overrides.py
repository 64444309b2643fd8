"""A human's marks, over HTTP and through their workflow: official everywhere, or undone and said so."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from db.postgres.overrides import PostgresOverrides
from db.redis.cache import RedisResultCache
from domain.errors import IllegalTransition, SagaStepRefused
from domain.identity import override_workflow_id
from domain.overrides import Override
from runtime import override_commands
from runtime.cli import app
from runtime.client import RequestRefused
from runtime.resources import Resources
from runtime.server import services
from tests.builders import a_submission, graded, open_batch
from tests.conftest import KEY
from tests.db.stage import until
from tests.workflows import plant
from workflows.overrides import OverrideWorkflow

ASKED: dict[str, Any] = {"question_id": "q2", "points": {"c1": 0.5}, "reason": "It says the opposite."}


async def report_of(api: httpx.AsyncClient, batch_id: str) -> dict[str, Any]:
    report: dict[str, Any] = (await api.get(f"/v1/batches/{batch_id}/report")).raise_for_status().json()
    return report


async def a_graded_submission(api: httpx.AsyncClient) -> tuple[str, str]:
    """Its batch, which has ended, and itself."""
    batch_id = await graded(api, {"a.json": a_submission()})

    async def final() -> bool:
        return bool((await api.get(f"/v1/batches/{batch_id}")).json()["status"] == "completed")

    await until(final, within_seconds=60)
    (row,) = (await report_of(api, batch_id))["submissions"]
    return batch_id, row["submission_id"]


async def test_a_human_overrides_a_mark_over_http(api: httpx.AsyncClient, workers: None) -> None:
    batch_id, submission_id = await a_graded_submission(api)
    url, key = f"/v1/submissions/{submission_id}/overrides", {"Idempotency-Key": f"mark-{batch_id}"}
    refused = {
        "question_id": (ASKED | {"question_id": "q9"}, 404),
        "points.c1": (ASKED | {"points": {"c1": 2.5}}, 422),
        "points.c9": (ASKED | {"points": {"c9": 1}}, 422),
    }
    for name, (body, status) in refused.items():
        answer = await api.post(url, json=body)
        assert (answer.status_code, answer.json()["field"]) == (status, name)

    begun = await api.post(url, json=ASKED, headers=key)
    assert begun.status_code == 202, begun.text

    async def applied() -> Any:
        (override,) = (await api.get(url)).json()["overrides"] or [{"status": ""}]
        return override if override["status"] == "completed" else None

    override = await until(applied, within_seconds=30)
    assert override["override_id"] == begun.json()["override_id"]
    assert (override["score_before"], override["score_after"]) == (3.0, 1.5)
    again = await api.post(url, json=ASKED, headers=key)
    assert (again.json(), again.headers["Idempotency-Replayed"]) == (begun.json(), "true")
    (row,) = (await report_of(api, batch_id))["submissions"]
    assert (row["score"], row["questions"]) == (2.5, {"q1": 1.0, "q2": 1.5})
    waking = await api.post(f"{url}/{override['override_id']}/retry")
    assert (waking.status_code, waking.json()["field"]) == (409, "override_id")
    assert (await api.get(f"/v1/submissions/{batch_id}/overrides")).status_code == 404


async def test_a_human_overrides_a_mark_by_the_command(
    api: httpx.AsyncClient, api_url: str, workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # whoever runs the tests may have set COLUMNS, by which tables are folded
    monkeypatch.setattr(override_commands.out, "width", 240)
    _, submission_id = await a_graded_submission(api)
    settings = {"ASSAY_API__URL": api_url, "ASSAY_API__KEY": KEY}

    async def assay(*arguments: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, app, arguments, env=settings)

    given = ("override", submission_id, "q2")
    for no_mark in ("c1", "=1", "c1=two", "c1=nan"):
        refused = await assay(*given, no_mark, "--reason", "So.")
        assert refused.exit_code == 2
        assert f"'{no_mark}' is no mark" in refused.stderr
    too_many = await assay(*given, "c1=2.5", "--reason", "So.")
    assert isinstance(too_many.exception, RequestRefused)
    assert too_many.exception.status == 422

    done = await assay(*given, "c1=0.5", "--reason", "It says [the] opposite.")
    assert (done.exit_code, done.stdout) == (0, "q2: 3 → 1.5 points.\n"), done.output
    listed = json.loads((await assay("overrides", submission_id, "--json")).stdout)
    (override,) = listed["overrides"]
    assert (override["status"], override["reason"]) == ("completed", "It says [the] opposite.")
    shown = await assay("overrides", submission_id)
    assert "3 → 1.5" in shown.stdout
    assert "It says [the] opposite." in shown.stdout


class StubbornCache(RedisResultCache):
    """A cache that, once told to, refuses what it is given, and then does not even drop it."""

    refusing = stubborn = False

    async def write(self, submission_id: str, results: Sequence[Mapping[str, Any]], mark: str) -> None:
        """Refuse, if it does."""
        if self.refusing:
            type(self).stubborn = True
            raise ValueError("no good")
        await super().write(submission_id, results, mark)

    async def forget(self, submission_id: str) -> None:
        """Refuse, if it is stubborn."""
        if self.stubborn:
            raise SagaStepRefused("entries stay")
        await super().forget(submission_id)


async def test_an_override_that_cannot_be_cached_is_undone_as_soon_as_that_is_possible(
    resources: Resources,
) -> None:
    batch = await open_batch(resources, {"a.json": a_submission()})
    (file,) = await plant.files_of(resources, batch)
    made, kept = services(resources), PostgresOverrides(resources.postgres)
    override = Override("1", "local", batch.id, file.id, "q2", "So.", "a key", {"c1": 0.5})
    with pytest.raises(IllegalTransition, match="no marks"):
        await kept.check(override)
    workers = (
        plant.orchestration(resources, StubbornCache),
        plant.cognition(resources, plant.WatchedModel()),
    )
    async with plant.running(*workers):
        await plant.start(resources, batch)
        await plant.all_ended(resources, batch)
        report = await made.results.report("local", batch.id)
        StubbornCache.refusing = True
        await made.orchestrator.start_override(override)
        await until(lambda: _is(kept, "needs_intervention", file.id), within_seconds=20)
        with pytest.raises(IllegalTransition, match=r"Override 1 .* under way"):
            await kept.check(replace(override, override_id="2"))
        StubbornCache.stubborn = False
        handle = resources.temporal.get_workflow_handle_for(
            OverrideWorkflow.run, override_workflow_id(file.id, "1")
        )
        await made.orchestrator.retry_file(handle.id)
        result = await handle.result()
    assert (result.status, result.code) == ("compensated", "saga_step_refused")
    assert await made.results.report("local", batch.id) == report
    assert await _is(kept, "compensated", file.id)
    await kept.check(replace(override, override_id="2"))
    kinds = [kind for _, kind, _ in await plant.file_events(resources, batch)]
    assert kinds[-2:] == ["MarksOverridden", "OverrideRetracted"]


async def _is(kept: PostgresOverrides, status: str, file_id: str) -> bool:
    return [each.status for each in await kept.list_of_submission("local", file_id)] == [status]
