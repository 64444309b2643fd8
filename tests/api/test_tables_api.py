"""Tables of submissions over HTTP: checked as a whole, stored row by row, repeatable."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from api.tables import MAX_TABLE_BYTES

TABLE = 'student,q1\nli-lei,443\n"韩梅梅, B",=1+1\n'
EXAM: dict[str, Any] = {
    "title": "Networks",
    "questions": [
        {"id": each, "type": "exact", "prompt": f"Prompt of {each}?", "points": 1, "answer": "443"}
        for each in ("q1", "q2")
    ],
}


async def hand_in(
    api: httpx.AsyncClient, batch_id: str, content: str | bytes, **parameters: Any
) -> httpx.Response:
    return await api.post(f"/v1/batches/{batch_id}/submissions", content=content, params=parameters)


async def stored(api: httpx.AsyncClient, batch_id: str) -> list[str]:
    listed = await api.get(f"/v1/batches/{batch_id}/files", params={"page_size": 100})
    return [each["name"] for each in listed.json()["items"]]


async def test_each_row_becomes_a_submission_and_a_repetition_is_a_no_op(
    api: httpx.AsyncClient, batch_id: str
) -> None:
    first = await hand_in(api, batch_id, TABLE)
    again = await hand_in(api, batch_id, TABLE)

    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == {
        "rows": 2,
        "created": 2,
        "unchanged": 0,
        "replaced": 0,
        "student_column": "student",
        "columns": {"q1": "q1"},
        "questions_without_column": [],
        "refused": [],
    }
    assert (again.json()["created"], again.json()["unchanged"]) == (0, 2)
    assert await stored(api, batch_id) == ["li-lei.json", "韩梅梅, B.json"]


async def test_columns_may_be_stated(api: httpx.AsyncClient) -> None:
    exam = await api.post("/v1/exams", json=EXAM)
    opened = await api.post("/v1/batches", json={"kind": "grading", "exam_id": exam.json()["id"]})
    batch_id = opened.json()["batch_id"]

    content = "Nr;Email;Port;Prompt of q2?\n1;li@example.org;443;80\n".encode("utf-16")
    answer = await hand_in(api, batch_id, content, student="Nr", map=["q1=Port"])

    assert answer.status_code == 201, answer.text
    assert answer.json()["columns"] == {"q1": "Port", "q2": "Prompt of q2?"}
    assert answer.json()["student_column"] == "Nr"
    assert await stored(api, batch_id) == ["1.json"]


async def test_the_answers_are_data_as_they_were_written(
    api: httpx.AsyncClient, batch_id: str, session_resources: Any
) -> None:
    await hand_in(api, batch_id, 'student,q1\nli,"=HYPERLINK(""x"")\n第二行"\n')

    file = (await api.get(f"/v1/batches/{batch_id}/files")).json()["items"][0]
    key = f"local/{batch_id}/{file['file_id']}/{file['sha256']}"
    content = json.loads(await session_resources.objects.read(key))
    assert content == {"answers": {"q1": '=HYPERLINK("x")\n第二行'}}


@pytest.mark.parametrize(
    ("content", "parameters", "field", "said"),
    [
        (TABLE, {"map": ["q1=Port"]}, "map", "no column 'Port'; its columns are 'student', 'q1'"),
        (TABLE, {"map": ["q9=q1"]}, "map", "no question 'q9'; its questions are q1"),
        (TABLE, {"map": ["q1"]}, "map", "not of the form q1=COLUMN"),
        (TABLE, {"map": ["q1=q1", "q1=student"]}, "map", "two columns"),
        (TABLE, {"student": "Nr"}, "student", "no column 'Nr'; its columns are"),
        (TABLE, {"surprise": "1"}, "surprise", "unknown query parameter"),
        ("who,q1\nli,1", {}, "student", "The columns are 'who', 'q1'"),
        ("student,port\nli,1", {}, "map", "The columns are 'student', 'port'"),
        ("student,q1\nli,1\nwu,2\nli,3", {}, "student", "Rows 2 and 4"),
        ('student,q1\nli,"1', {}, "body", "Row 2"),
        (b"\0\1\2\3\4", {}, "file", "binary"),
        ("", {}, "file", "empty"),
    ],
)
async def test_a_table_that_is_wrong_stores_nothing_and_names_what_is(
    api: httpx.AsyncClient,
    batch_id: str,
    content: str | bytes,
    parameters: dict[str, Any],
    field: str,
    said: str,
) -> None:
    answer = await hand_in(api, batch_id, content, **parameters)

    assert answer.status_code == 422, answer.text
    assert answer.json()["field"] == field
    assert said in answer.json()["detail"]
    assert await stored(api, batch_id) == []


async def test_a_row_that_cannot_be_stored_is_listed_and_the_others_are_stored(
    api: httpx.AsyncClient, batch_id: str
) -> None:
    await hand_in(api, batch_id, "student,q1\nwu,80\n")
    rows = ["student,q1", "li,443", ",443", "wu,443", "a\tb,443", "x,1,2", "x" * 255 + ",1", "last,1"]

    answer = await hand_in(api, batch_id, "\n".join(rows))
    replaced = await hand_in(api, batch_id, "student,q1\nwu,443\n", overwrite="true")

    document = answer.json()
    assert [(each["row"], each["student"][:4], each["code"]) for each in document["refused"]] == [
        (3, "", "invalid_input"),
        (4, "wu", "file_exists"),
        (5, "a\tb", "invalid_input"),
        (6, "x", "unreadable_submission"),
        (7, "xxxx", "invalid_input"),
    ]
    assert (document["rows"], document["created"]) == (7, 2)
    assert replaced.json()["replaced"] == 1
    assert await stored(api, batch_id) == ["last.json", "li.json", "wu.json"]


async def test_an_export_of_moodle_is_taken_as_it_is(api: httpx.AsyncClient, batch_id: str) -> None:
    content = "Last name,ID number,Email address,Response 1\nLi,,li@example.org,443\nOverall average,,,1\n"

    document = (await hand_in(api, batch_id, content)).json()

    assert (document["student_column"], document["refused"]) == ("Email address", [])
    assert (document["rows"], document["created"]) == (1, 1)
    assert await stored(api, batch_id) == ["li@example.org.json"]


async def test_a_frozen_batch_takes_no_table(api: httpx.AsyncClient, batch_id: str) -> None:
    await hand_in(api, batch_id, TABLE)
    await api.post(f"/v1/batches/{batch_id}/complete")

    answer = await hand_in(api, batch_id, "student,q1\nnew,1\n")

    assert (answer.status_code, answer.json()["code"]) == (409, "batch_frozen")
    assert (answer.json()["created"], answer.json()["unchanged"]) == (0, 0)


async def test_another_batch_is_not_there(api: httpx.AsyncClient) -> None:
    assert (await hand_in(api, "0197c1de-1111-7000-8000-000000000000", TABLE)).status_code == 404


async def test_a_table_has_a_limit_that_is_named(api: httpx.AsyncClient, batch_id: str) -> None:
    answer = await hand_in(api, batch_id, b"x" * (MAX_TABLE_BYTES + 1))

    assert (answer.status_code, answer.json()["code"]) == (413, "limit_exceeded")
    assert "67,108,864" in answer.json()["detail"]


async def test_a_key_is_needed(api_url: str, batch_id: str) -> None:
    async with httpx.AsyncClient(base_url=api_url) as stranger:
        assert (await hand_in(stranger, batch_id, TABLE)).status_code == 401


@pytest.mark.usefixtures("workers")
async def test_rows_are_graded_and_a_class_table_handed_in_as_a_file_fails_alone(
    api: httpx.AsyncClient, batch_id: str, settled: Callable[[str], Awaitable[dict[str, Any]]]
) -> None:
    await hand_in(api, batch_id, "student,Question 1\nli,443\nwu,80\n")
    await api.put(f"/v1/batches/{batch_id}/files/class.csv", content=b"student,q1\na,443\nb,443\n")
    await api.put(f"/v1/batches/{batch_id}/files/one.csv", content=b"Response 1\n443\n")

    report = await settled(batch_id)

    rows = {each["name"]: each for each in report["submissions"]}
    assert {name: row["score"] for name, row in rows.items()} == {
        "li.json": 1.0,
        "wu.json": 0.0,
        "one.csv": 1.0,
        "class.csv": None,
    }
    assert rows["class.csv"]["failure_code"] == "unreadable_submission"
    assert "assay grade exam.yaml answers.csv" in rows["class.csv"]["failure_message"]


@pytest.fixture
def settled(api: httpx.AsyncClient) -> Callable[[str], Awaitable[dict[str, Any]]]:
    """Completes a batch and answers its report once it has ended."""

    async def report(batch_id: str) -> dict[str, Any]:
        await api.post(f"/v1/batches/{batch_id}/complete")
        async with api.stream("GET", f"/v1/batches/{batch_id}/events", timeout=60) as stream:
            async for _ in stream.aiter_lines():
                pass
        found: dict[str, Any] = (await api.get(f"/v1/batches/{batch_id}/report")).json()
        return found

    return report
