"""One trace id runs through a request, its log lines and its answer."""

from typing import Any

import httpx
import pytest
import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import answer_defect
from api.trace import TraceMiddleware, Traceparent, trace_id_of

GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"

Measured = list[tuple[str, str, int]]


async def answering_app(scope: Scope, receive: Receive, send: Send) -> None:
    bound = structlog.contextvars.get_contextvars()["trace_id"]
    assert bound == trace_id_of(scope)
    await send({"type": "http.response.start", "status": 204, "headers": [(b"x-trace", bound.encode())]})
    await send({"type": "http.response.body"})


async def crashing_app(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("password=hunter2")


def client_of(app: ASGIApp, measured: Measured) -> httpx.AsyncClient:
    def measure(scope: Scope, route: str, method: str, status: int, seconds: float) -> None:
        measured.append((route, method, status))

    traced = TraceMiddleware(app, measure=measure, crashed=answer_defect)
    return httpx.AsyncClient(transport=httpx.ASGITransport(traced), base_url="http://test")


async def test_a_given_trace_is_continued_in_a_new_span() -> None:
    answer = await client_of(answering_app, []).get("/", headers={"traceparent": GIVEN})

    returned = Traceparent.parse(answer.headers["traceparent"])
    assert returned is not None
    assert returned.trace_id == answer.headers["x-trace"] == TRACE_ID
    assert returned.span_id != "00f067aa0ba902b7"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        GIVEN.upper(),
        GIVEN + "-more",
        GIVEN.replace("00-", "ff-", 1),
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        GIVEN[:-1],
    ],
)
async def test_an_invalid_header_starts_a_new_trace(header: str) -> None:
    assert Traceparent.parse(header) is None
    answer = await client_of(answering_app, []).get("/", headers={"traceparent": header})

    returned = Traceparent.parse(answer.headers["traceparent"])
    assert returned is not None
    assert returned.trace_id != TRACE_ID


def test_a_later_version_may_say_more() -> None:
    assert Traceparent.parse(GIVEN.replace("00-", "01-", 1) + "-more") is not None


async def test_a_crash_is_a_problem_document_of_the_same_trace() -> None:
    measured: Measured = []
    answer = await client_of(crashing_app, measured).get("/", headers={"traceparent": GIVEN})

    document: dict[str, Any] = answer.json()
    assert answer.status_code == document["status"] == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert document["trace_id"] == TRACE_ID
    assert TRACE_ID in answer.headers["traceparent"]
    assert "hunter2" not in answer.text
    assert measured == [("unmatched", "GET", 500)]


async def test_nothing_stays_bound_after_a_request() -> None:
    await client_of(answering_app, []).get("/")

    assert "trace_id" not in structlog.contextvars.get_contextvars()
