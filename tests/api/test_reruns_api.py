"""Re-runs, forks and the history of threads over HTTP, and by the commands that ask for them."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from runtime.cli import app
from runtime.resources import Resources
from tests.builders import a_submission, ended, graded, open_batch
from tests.conftest import KEY

NOWHERE = "0197c1de-1111-7000-8000-000000000000"


@pytest.fixture(scope="module")
async def batch(
    api: httpx.AsyncClient, session_resources: Resources, workers: None
) -> tuple[str, dict[str, str]]:
    """A batch that has ended in part: its id, and its files' ids by name."""
    batch_id = await graded(api, {"good.json": a_submission(), "bad.json": b"{"})
    await ended(session_resources, batch_id)
    files = (await api.get(f"/v1/batches/{batch_id}/files")).json()["items"]
    return batch_id, {each["name"]: each["file_id"] for each in files}


Batch = tuple[str, dict[str, str]]


async def history(api: httpx.AsyncClient, submission_id: str) -> list[dict[str, Any]]:
    answer = await api.get(f"/v1/submissions/{submission_id}/checkpoints")
    return answer.raise_for_status().json()["checkpoints"]


async def test_the_history_of_a_submission_is_listed_read_and_compared(
    api: httpx.AsyncClient, batch: Batch
) -> None:
    submission_id = batch[1]["good.json"]
    listed = await history(api, submission_id)
    last, first = listed[0], listed[-1]
    assert (last["nodes"], last["next_nodes"], first["next_nodes"]) == (["sum_points"], [], ["__start__"])
    assert [each["step"] for each in listed] == sorted((each["step"] for each in listed), reverse=True)
    assert last["data_size_bytes"] > 0
    assert last["base_checkpoint_id"] == listed[1]["checkpoint_id"]
    planned = next(each for each in listed if each["nodes"] == ["supervisor"])
    assert planned["next_nodes"] == ["closed_question", "short_answer"]

    path = f"/v1/submissions/{submission_id}/checkpoints"
    state = (await api.get(f"{path}/{last['checkpoint_id']}")).raise_for_status().json()
    assert state["state"]["total"] == {"score": 4.0, "max_score": 4.0}
    assert state["state"]["results"].keys() == {"q1", "q2"}
    assert (state["unreadable"], state["changes"]) == ({}, None)
    assert not [name for name in state["state"] if name.startswith(("__", "branch:"))]
    before = (await api.get(f"{path}/{planned['checkpoint_id']}")).json()
    assert {each["channel"] for each in before["pending"]} == {"results"}

    compared = await api.get(f"{path}/{last['checkpoint_id']}", params={"against": planned["checkpoint_id"]})
    changes = {(each["channel"], each["key"]): each["change"] for each in compared.json()["changes"]}
    assert changes == {
        ("results", "q1"): "added", ("results", "q2"): "added",
        ("total", "score"): "added", ("total", "max_score"): "added",
    }  # fmt: skip


async def test_failed_submissions_run_again_and_the_report_is_of_the_new_generation(
    api: httpx.AsyncClient, batch: Batch, session_resources: Resources
) -> None:
    batch_id, files = batch
    before = (await api.get(f"/v1/batches/{batch_id}/report")).json()
    answer = await api.post(f"/v1/batches/{batch_id}/retry-failed")
    assert answer.status_code == 202, answer.text
    again = answer.json()
    assert (again["status"], again["generation"]) == ("scattering", before["batch"]["generation"] + 1)
    assert again["workflow_id"] == f"batch/{batch_id}/g{again['generation']}"
    at_once = await api.post(f"/v1/batches/{batch_id}/retry-failed")
    if at_once.status_code == 409:  # unless the second generation has ended already
        assert at_once.json()["code"] == "illegal_transition"
    assert (await ended(session_resources, batch_id)).state == "partial"
    after = (await api.get(f"/v1/batches/{batch_id}/report")).json()
    assert after["batch"]["generation"] > before["batch"]["generation"]
    assert after["counts"] == before["counts"]
    good = (await api.get(f"/v1/batches/{batch_id}/files/{files['good.json']}/results")).json()
    assert good["score"] == 4.0


async def test_a_submission_goes_on_from_a_checkpoint_and_a_cohort_from_a_step(
    api: httpx.AsyncClient, batch: Batch, session_resources: Resources
) -> None:
    batch_id, files = batch
    await ended(session_resources, batch_id)
    good = files["good.json"]
    checkpoint = next(each for each in await history(api, good) if each["next_nodes"] == ["sum_points"])
    answer = await api.post(
        f"/v1/submissions/{good}/fork", json={"checkpoint_id": checkpoint["checkpoint_id"]}
    )
    assert answer.status_code == 202, answer.text
    await ended(session_resources, batch_id)
    assert (await api.get(f"/v1/batches/{batch_id}/files/{good}/results")).json()["score"] == 4.0
    cohort = {"submissions": [good], "step": 1}
    answer = await api.post(f"/v1/batches/{batch_id}/fork", json=cohort)
    assert (answer.status_code, answer.json()["generation"]) == (202, (await generation(api, batch_id)))
    await ended(session_resources, batch_id)
    assert len({each["thread_id"] for each in await history(api, good)}) == 3


async def generation(api: httpx.AsyncClient, batch_id: str) -> int:
    return int((await api.get(f"/v1/batches/{batch_id}")).json()["generation"])


async def test_what_cannot_be_gone_on_from_is_refused_and_nothing_changes(
    api: httpx.AsyncClient, batch: Batch, session_resources: Resources
) -> None:
    batch_id, files = batch
    good, bad = files["good.json"], files["bad.json"]
    await ended(session_resources, batch_id)
    before = (await api.get(f"/v1/batches/{batch_id}")).json()
    fork = f"/v1/batches/{batch_id}/fork"
    # the file that never could be read has no thread; one of two is enough to refuse both
    for path, body, status in [
        (fork, {"step": 1}, 404),
        (fork, {"step": 1, "submissions": [good, bad]}, 404),
        (fork, {"node": "no_such_node", "submissions": [good]}, 404),
        (fork, {"step": 1, "submissions": [NOWHERE]}, 404),
        (fork, {"step": 1, "submissions": ["../x"]}, 404),
        (fork, {}, 422),
        (fork, {"step": 1, "node": "supervisor"}, 422),
        (fork, {"step": 1, "submissions": []}, 422),
        (f"/v1/submissions/{good}/fork", {"checkpoint_id": NOWHERE}, 404),
        (f"/v1/submissions/{good}/fork", {}, 422),
        (f"/v1/batches/{NOWHERE}/retry-failed", None, 404),
    ]:
        answer = await api.post(path, json=body)
        assert answer.status_code == status, (body, answer.text)
    assert (await api.get(f"/v1/batches/{batch_id}")).json() == before
    answer = await api.get(f"/v1/submissions/{good}/checkpoints/{NOWHERE}")
    assert (answer.status_code, answer.json()["field"]) == (404, "checkpoint_id")


async def test_another_tenant_sees_and_moves_nothing(
    api: httpx.AsyncClient, api_url: str, batch: Batch
) -> None:
    batch_id, files = batch
    made = await api.post("/v1/tenants", json={"tenant_id": "history-reader", "name": "Another"})
    key = made.json()["key"]["secret"] if made.status_code == 201 else pytest.fail(made.text)
    submission = f"/v1/submissions/{files['good.json']}"
    async with httpx.AsyncClient(base_url=api_url, headers={"Authorization": f"Bearer {key}"}) as other:
        asked = [
            other.get(f"{submission}/checkpoints"),
            other.get(f"{submission}/checkpoints/{NOWHERE}"),
            other.post(f"{submission}/fork", json={"checkpoint_id": NOWHERE}),
            other.post(f"/v1/batches/{batch_id}/retry-failed"),
            other.post(f"/v1/batches/{batch_id}/fork", json={"step": 1}),
        ]
        answers = await asyncio.gather(*asked)
    assert [each.status_code for each in answers] == [404] * len(asked)


async def test_a_batch_that_was_cancelled_before_it_was_complete_has_nothing_to_run_again(
    api: httpx.AsyncClient, session_resources: Resources
) -> None:
    pending = await open_batch(session_resources, {"a.json": a_submission()}, complete=False)
    (await api.post(f"/v1/batches/{pending.id}/cancel")).raise_for_status()
    answer = await api.post(f"/v1/batches/{pending.id}/retry-failed")
    assert (answer.status_code, answer.json()["code"]) == (409, "nothing_to_rerun")


async def command(*arguments: str) -> Any:
    """What a command prints; it blocks, and the API answers from this process."""
    done = await asyncio.to_thread(CliRunner().invoke, app, list(arguments))
    assert done.exit_code in (0, 4), done.output
    return done.stdout


async def test_the_commands_list_show_compare_fork_and_retry(
    api: httpx.AsyncClient,
    api_url: str,
    batch: Batch,
    session_resources: Resources,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch_id, files = batch
    await ended(session_resources, batch_id)
    monkeypatch.setenv("ASSAY_API__URL", api_url)
    monkeypatch.setenv("ASSAY_API__KEY", KEY)
    good = files["good.json"]
    listed = json.loads(await command("thread", "list", good, "--json"))["checkpoints"]
    last, planned = listed[0]["checkpoint_id"], next(e for e in listed if e["step"] == 1)["checkpoint_id"]
    assert last in await command("thread", "list", good)
    assert "4.0" in await command("thread", "show", good, last)
    assert json.loads(await command("thread", "show", good, last, "--json"))["state"]["total"]["score"] == 4.0
    assert "added" in await command("thread", "compare", good, planned, last)
    assert json.loads(await command("thread", "compare", good, last, last, "--json")) == []
    assert "runs again" in await command("thread", "fork", good, last)
    await ended(session_resources, batch_id)
    assert "partial" in await command("fork", batch_id, "--step", "1", "--submission", good, "--watch")
    assert json.loads(await command("retry-failed", batch_id, "--watch", "--json"))["status"] == "partial"


async def test_the_sagas_are_listed_by_their_status(
    batch: Batch, session_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASSAY_POSTGRES__URL", session_database_url)
    sagas = json.loads(await command("sagas", "--status", "completed", "--count", "10000", "--json"))
    (first, *_) = [each for each in sagas if each["saga_id"].startswith(batch[1]["good.json"])]
    assert {step["status"] for step in first["steps"]} == {"completed"}
    assert first["saga_id"] in await command("sagas", "--count", "10000")
    assert json.loads(await command("sagas", "--status", "needs_intervention", "--json")) == []
