"""The whole river on real servers: a batch goes in, marks with evidence come out."""

import httpx

from runtime.resources import Resources
from tests.builders import a_submission, ended, graded


async def test_a_batch_is_graded_and_a_broken_file_fails_alone(
    api: httpx.AsyncClient, session_resources: Resources, workers: None
) -> None:
    files = {f"student-{n}.json": a_submission() for n in range(5)} | {"broken.json": b"\xff\xfe\x00{"}
    batch_id = await graded(api, files)
    batch = await ended(session_resources, batch_id)
    assert batch.state == "partial"
    report = (await api.get(f"/v1/batches/{batch_id}/report")).raise_for_status().json()
    assert report["counts"]["completed"] == 5
    assert report["counts"]["failed"] == 1
    by_name = {each["name"]: each for each in report["submissions"]}
    assert by_name["student-0.json"]["score"] == 4
    assert by_name["broken.json"]["failure_code"] == "unreadable_submission"
