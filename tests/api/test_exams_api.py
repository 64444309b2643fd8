"""Exams over HTTP."""

from typing import Any

import httpx
import psycopg
import pytest
import yaml

from db.postgres.tenants import ENSURE_KEY_SQL, key_hash
from domain.exam_schema import exam_schema

EXAM: dict[str, Any] = {
    "title": "Networks",
    "questions": [{"id": "q1", "type": "exact", "prompt": "Port of HTTPS?", "points": 1, "answer": "443"}],
}


async def test_an_exam_that_was_handed_in_is_read_and_listed(api: httpx.AsyncClient) -> None:
    created = await api.post("/v1/exams", json=EXAM)

    assert created.status_code == 201
    assert created.headers["location"] == f"/v1/exams/{created.json()['id']}"
    read = await api.get(created.headers["location"])
    assert read.json() == created.json()
    assert read.json()["questions"][0]["answer"] == "443"
    listed = await api.get("/v1/exams", params={"page_size": 1})
    assert listed.json()["items"][0]["id"] == created.json()["id"]
    assert listed.json()["total"] >= 1


async def test_an_exam_may_be_yaml(api: httpx.AsyncClient) -> None:
    body = yaml.safe_dump({**EXAM, "title": "网络"}, allow_unicode=True).encode()

    created = await api.post("/v1/exams", content=body, headers={"Content-Type": "application/yaml"})

    assert created.status_code == 201
    assert created.json()["title"] == "网络"


async def test_a_faulty_exam_is_refused_at_its_field(api: httpx.AsyncClient) -> None:
    answer = await api.post("/v1/exams", json={**EXAM, "questions": [{**EXAM["questions"][0], "points": -1}]})

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["field"] == "questions[0].points"


async def test_every_mistake_is_told_with_its_line_and_the_way_out(api: httpx.AsyncClient) -> None:
    question = "  - id: q1\n    type: essay\n    prompt: Why?\n    points: -1\n    answer: yes\n"
    body = f"title: T\nquestions:\n{question}"

    answer = await api.post("/v1/exams", content=body, headers={"Content-Type": "application/yaml"})

    assert answer.json()["detail"].startswith("line 3: questions[0].reference: ")
    assert [(each["field"], each["line"]) for each in answer.json()["errors"]] == [
        ("questions[0].reference", 3),
        ("questions[0].criteria", 3),
        ("questions[0].points", 6),
        ("questions[0].answer", 7),
    ]
    assert all(each["message"] and each["remedy"] for each in answer.json()["errors"])


WHOLE: dict[str, Any] = {
    "title": "Whole",
    "questions": [
        {
            "id": "q1",
            "type": "multiple_choice",
            "prompt": "Which?",
            "points": 1,
            "options": {"B": "SECRETLESS", "A": "One"},
            "answer": "A",
            "accept": ["B"],
        },
        {
            "id": "q2",
            "type": "numeric",
            "prompt": "Long?",
            "points": 2,
            "answer": 7777,
            "tolerance": "2%",
            "unit": "ms",
        },
        {
            "id": "q3",
            "type": "essay",
            "prompt": "Why?",
            "points": 2,
            "reference": "SECRET reference",
            "guidelines": "SECRET guidelines",
            "criteria": [{"id": "c1", "points": 2, "description": "SECRET criterion"}],
            "examples": [
                {"answer": "SECRET example", "points": {"c1": 0.1}},
                {"answer": "SECRET other", "points": 1.5},
            ],
        },
    ],
}


async def test_options_guidelines_and_examples_are_stored_and_read(api: httpx.AsyncClient) -> None:
    created = (await api.post("/v1/exams", json=WHOLE)).raise_for_status()

    choice, numeric, essay = (await api.get(created.headers["location"])).json()["questions"]
    assert list(choice["options"].items()) == [("B", "SECRETLESS"), ("A", "One")]
    assert (numeric["tolerance"], numeric["unit"]) == (155.54, "ms")
    assert essay["guidelines"] == "SECRET guidelines"
    assert essay["examples"] == [
        {"answer": "SECRET example", "points": 0.1, "by_criterion": {"c1": 0.1}},
        {"answer": "SECRET other", "points": 1.5, "by_criterion": {}},
    ]


async def test_a_students_view_tells_nothing_that_helps_to_answer(api: httpx.AsyncClient) -> None:
    created = (await api.post("/v1/exams", json=WHOLE)).raise_for_status()

    seen = await api.get(created.headers["location"], params={"view": "student"})

    assert seen.status_code == 200
    for hidden in (
        "SECRET ",
        "7777",
        "155.54",
        '"answer"',
        '"accept"',
        "criteria",
        "tolerance",
        "guidelines",
    ):
        assert hidden not in seen.text
    assert seen.json()["max_points"] == 5
    assert seen.json()["questions"][0] == {
        "id": "q1",
        "type": "multiple_choice",
        "prompt": "Which?",
        "points": 1,
        "options": {"B": "SECRETLESS", "A": "One"},
        "unit": "",
    }


@pytest.mark.parametrize(
    ("scope", "view", "status", "keys"),
    [
        ("submit", None, 200, "student"),
        ("submit", "student", 200, "student"),
        ("submit", "grader", 403, None),
        ("read", None, 200, "grader"),
        ("read", "student", 200, "student"),
        ("read", "grader", 200, "grader"),
        ("read", "teacher", 422, None),
        ("model", None, 403, None),
    ],
)
async def test_a_keys_scopes_decide_which_view_it_gets(
    api: httpx.AsyncClient,
    session_database_url: str,
    scope: str,
    view: str | None,
    status: int,
    keys: str | None,
) -> None:
    created = (await api.post("/v1/exams", json=WHOLE)).raise_for_status()
    secret = f"assay_exam_views_{scope}_{view}"
    async with await psycopg.AsyncConnection.connect(session_database_url) as connection:
        await connection.execute(ENSURE_KEY_SQL, ["local", scope, secret[:12], key_hash(secret), [scope]])

    parameters = {} if view is None else {"view": view}
    headers = {"Authorization": f"Bearer {secret}"}
    answer = await api.get(created.headers["location"], params=parameters, headers=headers)

    assert answer.status_code == status
    if keys:
        assert ("reference" in answer.json()["questions"][2]) == (keys == "grader")
    else:
        assert "SECRET" not in answer.text


async def test_the_schema_needs_no_key(api: httpx.AsyncClient) -> None:
    answer = await api.get("/v1/schemas/exam", headers={"Authorization": ""})

    assert answer.headers["content-type"] == "application/schema+json"
    assert answer.json() == exam_schema()
    assert answer.json()["$id"] == "urn:assay:schema:exam:1"


async def test_an_exam_over_the_limit_is_refused(api: httpx.AsyncClient) -> None:
    answer = await api.post("/v1/exams", json={**EXAM, "title": "x" * 6 * 1024 * 1024})

    assert answer.status_code == 413
    assert "max_exam_bytes" in answer.json()["detail"]


async def test_an_exam_with_an_idempotency_key_is_created_once(api: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": f"exam-{id(object())}"}

    first = await api.post("/v1/exams", json=EXAM, headers=headers)
    second = await api.post("/v1/exams", json=EXAM, headers=headers)
    other = await api.post("/v1/exams", json={**EXAM, "title": "Another"}, headers=headers)

    assert second.json() == first.json()
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_mismatch")
