"""Reports over HTTP."""

import asyncio
import csv
import io

import httpx


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


async def test_a_hundred_concurrent_reads_are_answered_alike(api: httpx.AsyncClient, batch_id: str) -> None:
    await api.put(f"/v1/batches/{batch_id}/files/a.txt", content=b"q1: 443")
    url = f"/v1/batches/{batch_id}/report"

    answers = await asyncio.gather(*(api.get(url) for _ in range(100)))

    assert len({each.content for each in answers}) == 1


async def test_a_final_report_is_the_same_from_the_cache(api: httpx.AsyncClient, batch_id: str) -> None:
    await api.post(f"/v1/batches/{batch_id}/cancel")
    url = f"/v1/batches/{batch_id}/report"

    assert (await api.get(url)).json() == (await api.get(url)).json()


async def test_another_format_is_refused(api: httpx.AsyncClient, batch_id: str) -> None:
    answer = await api.get(f"/v1/batches/{batch_id}/report", params={"format": "xlsx"})

    assert (answer.status_code, answer.json()["field"]) == (422, "format")


async def test_the_report_of_a_batch_that_is_not_there_is_not_found(api: httpx.AsyncClient) -> None:
    answer = await api.get("/v1/batches/0197c1de-1111-7000-8000-000000000000/report")

    assert answer.status_code == 404
