"""Reports over HTTP."""

import asyncio
import csv
import io
from dataclasses import replace
from typing import Any

import httpx
import pytest

from api.report_reading import read_report
from api.singleflight import SingleFlight
from db.postgres.reports import PostgresResults
from db.postgres.tenants import PostgresKeys
from domain.states import BATCH_MACHINE
from runtime.resources import Resources
from runtime.server import services
from tests.builders import a_submission, graded


async def test_a_report_has_a_row_a_file_in_json_and_in_csv(api: httpx.AsyncClient, batch_id: str) -> None:
    for name in ("=cmd()", "b.txt"):
        await api.put(f"/v1/batches/{batch_id}/files/{name}", content=b"q1: 443")
    url = f"/v1/batches/{batch_id}/report"

    report = (await api.get(url)).json()
    by_query = await api.get(url, params={"format": "csv"})
    by_header = await api.get(url, headers={"Accept": "text/csv"})

    assert report["total_files"] == sum(report["counts"].values()) == len(report["submissions"]) == 2
    assert by_query.headers["content-type"] == "text/csv; charset=utf-8"
    assert by_query.content == by_header.content
    assert by_query.content.startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(io.StringIO(by_query.content.decode("utf-8-sig"), newline="")))
    assert [row["name"] for row in rows] == ["'=cmd()", "b.txt"]
    assert [row["submission_id"] for row in rows] == [each["submission_id"] for each in report["submissions"]]


async def test_the_page_is_under_a_policy_that_lets_nothing_run(
    api: httpx.AsyncClient, batch_id: str
) -> None:
    await api.put(f"/v1/batches/{batch_id}/files/%3Cscript%3E.txt", content=b"q1: 443")

    answer = await api.get(f"/v1/batches/{batch_id}/report", params={"format": "html"})

    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "private, no-cache"
    assert "&lt;script&gt;.txt" in answer.text
    assert "<script" not in answer.text


@pytest.mark.parametrize(
    ("accept", "type_"),
    [
        ("*/*", "application/json"),
        ("", "application/json"),
        ("image/png", "application/json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
        ("text/csv", "text/csv"),
        ("text/csv;q=0.5, application/json", "application/json"),
        ("TEXT/HTML; q=0.1, text/csv; q=0.9", "text/csv"),
    ],
)
async def test_the_format_is_the_one_that_is_accepted_first(
    api: httpx.AsyncClient, batch_id: str, accept: str, type_: str
) -> None:
    answer = await api.get(f"/v1/batches/{batch_id}/report", headers={"Accept": accept})

    assert answer.headers["content-type"].startswith(type_)
    assert answer.headers["vary"] == "Accept"


async def test_criteria_are_added_where_they_are_asked_for(api: httpx.AsyncClient, workers: None) -> None:
    batch_id = await graded(api, {"a.json": a_submission(), "b.json": b"\xff"})
    async with asyncio.timeout(60):
        while (await api.get(f"/v1/batches/{batch_id}")).json()["status"] not in BATCH_MACHINE.final:
            await asyncio.sleep(0.05)
    url = f"/v1/batches/{batch_id}/report"

    plain = (await api.get(url)).json()
    detailed = (await api.get(url, params={"detail": "criteria"})).json()
    answer = await api.get(url, params={"detail": "criteria", "format": "csv"})
    rows = list(csv.DictReader(io.StringIO(answer.content.decode("utf-8-sig"), newline="")))

    assert "criteria" not in plain["submissions"][0]
    marks = detailed["submissions"][0]["criteria"]
    assert sum(mark["points"] for mark in marks.values()) == plain["submissions"][0]["score"]
    assert [float(rows[0][f"{place} points"]) for place in marks] == [
        each["points"] for each in marks.values()
    ]
    assert detailed["submissions"][1]["criteria"] == {}
    assert plain["failures"] == [
        {"code": "unreadable_submission", "count": 1, "message": plain["submissions"][1]["failure_message"]}
    ]
    assert plain["usage"]["cost_usd"] == "0.00"
    assert plain["timing"]["duration_seconds"] > 0


async def test_a_hundred_concurrent_reads_are_answered_alike(api: httpx.AsyncClient, batch_id: str) -> None:
    await api.put(f"/v1/batches/{batch_id}/files/a.txt", content=b"q1: 443")
    url = f"/v1/batches/{batch_id}/report"

    answers = await asyncio.gather(*(api.get(url) for _ in range(100)))

    assert len({each.content for each in answers}) == 1


async def test_a_final_report_is_the_same_from_the_cache(api: httpx.AsyncClient, batch_id: str) -> None:
    await api.post(f"/v1/batches/{batch_id}/cancel")
    url = f"/v1/batches/{batch_id}/report"

    assert (await api.get(url)).json() == (await api.get(url)).json()


async def test_a_report_that_an_older_version_has_cached_is_read_anew(
    api: httpx.AsyncClient, session_resources: Resources, batch_id: str
) -> None:
    await api.post(f"/v1/batches/{batch_id}/cancel")
    url = f"/v1/batches/{batch_id}/report"
    whole = (await api.get(url)).json()
    cache = services(session_resources).report_cache
    mark = await cache.mark(batch_id)
    await cache.write(batch_id, {name: whole[name] for name in ("batch", "counts", "submissions")}, mark=mark)

    assert (await api.get(url)).json() == whole
    assert (await api.get(url, params={"format": "html"})).status_code == 200


async def test_all_formats_of_a_final_batch_come_from_one_reading(
    api: httpx.AsyncClient, session_resources: Resources, batch_id: str
) -> None:
    await api.post(f"/v1/batches/{batch_id}/cancel")
    url = f"/v1/batches/{batch_id}/report"
    await api.get(url)
    cache = services(session_resources).report_cache
    kept = await cache.read(batch_id)
    assert kept is not None
    other = kept | {"batch": kept["batch"] | {"exam_title": "As cached"}}
    await cache.write(batch_id, other, mark=await cache.mark(batch_id))

    assert "As cached" in (await api.get(url, params={"format": "html"})).text


async def test_another_format_is_refused(api: httpx.AsyncClient, batch_id: str) -> None:
    answer = await api.get(f"/v1/batches/{batch_id}/report", params={"format": "xlsx"})

    assert (answer.status_code, answer.json()["field"]) == (422, "format")


async def test_the_report_of_a_batch_that_is_not_there_is_not_found(api: httpx.AsyncClient) -> None:
    answer = await api.get("/v1/batches/0197c1de-1111-7000-8000-000000000000/report")

    assert answer.status_code == 404


async def test_a_final_batchs_report_is_rebuilt_once_for_all_processes(
    api: httpx.AsyncClient, batch_id: str, session_resources: Resources
) -> None:
    (await api.post(f"/v1/batches/{batch_id}/cancel")).raise_for_status()
    computed = 0

    class CountedResults(PostgresResults):
        async def report(self, tenant_id: str, batch_id: str) -> dict[str, Any]:
            nonlocal computed
            computed += 1
            await asyncio.sleep(0.05)
            return await super().report(tenant_id, batch_id)

    results = CountedResults(session_resources.postgres)
    one = services(session_resources)
    processes = [replace(one, results=results, reports=SingleFlight()) for _ in range(3)]
    reads = [read_report(each, "local", batch_id) for each in processes for _ in range(40)]
    reports = await asyncio.gather(*reads)
    assert computed == 1
    assert all(each == reports[0] for each in reports)


async def test_a_rebuild_that_lost_its_lease_does_not_replace_a_newer_one(
    batch_id: str, session_resources: Resources
) -> None:
    cache = services(session_resources).report_cache
    mark = await cache.mark(batch_id)
    await cache.write(batch_id, {"batch": "newer"}, mark=mark, fence=8)
    await cache.write(batch_id, {"batch": "older"}, mark=mark, fence=7)
    assert await cache.read(batch_id) == {"batch": "newer"}
    await cache.forget(batch_id)
    mark = await cache.mark(batch_id)
    await cache.write(batch_id, {"batch": "older"}, mark=mark, fence=7)
    assert await cache.read(batch_id) is None
    await cache.write(batch_id, {"batch": "newest"}, mark=mark, fence=9)
    assert await cache.read(batch_id) == {"batch": "newest"}


async def test_a_copy_is_answered_as_the_whole_way_answers_and_to_nobody_else(
    api: httpx.AsyncClient, batch_id: str, session_resources: Resources
) -> None:
    (await api.post(f"/v1/batches/{batch_id}/cancel")).raise_for_status()
    url = f"/v1/batches/{batch_id}/report"
    first, second, third = [await api.get(url) for _ in range(3)]
    whole_way = await api.get(url, params={"format": "json"})
    for each in (second, third, whole_way):
        assert each.content == first.content
        assert each.headers["content-type"] == first.headers["content-type"]
        assert each.headers["vary"] == "Accept"
    pages = [await api.get(url, headers={"Accept": "text/html"}) for _ in range(3)]
    assert {each.headers["content-type"] for each in pages} == {"text/html; charset=utf-8"}

    await PostgresKeys(session_resources.postgres).ensure("others", "others", "key", "assay_others_key")
    stranger = await api.get(url, headers={"Authorization": "Bearer assay_others_key"})
    nobody = await api.get(url, headers={"Authorization": "Bearer assay_nobody"})
    assert (stranger.status_code, nobody.status_code) == (404, 401)

    await session_resources.postgres.run("UPDATE batches SET name = 'Renamed' WHERE id = %s", [batch_id])
    await services(session_resources).report_cache.forget(batch_id)
    assert (await api.get(url)).json()["batch"]["name"] == "Renamed"
