"""The translator from conditions to HTTP: a status and a problem document (RFC 9457)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import HTTPException as RouteError
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from api.trace import trace_id_of
from domain.errors import (
    AssayError,
    BudgetExhausted,
    Conflict,
    EpochSuperseded,
    Forbidden,
    InvalidExam,
    InvalidInput,
    LimitExceeded,
    NotFound,
    RateLimited,
    Unauthenticated,
    Unavailable,
    UnknownModel,
    UnpricedModel,
)

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"

#: the nearest class in an error's ancestry decides; what is not here is our own failure
STATUSES: Mapping[type[AssayError], int] = {
    InvalidInput: 422,
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    BudgetExhausted: 402,
    RateLimited: 429,
    LimitExceeded: 413,
    Unavailable: 503,
    UnknownModel: 422,
    UnpricedModel: 422,
    EpochSuperseded: 409,
    AssayError: 500,
}

#: what the client has gone away from is answered to nobody; the figure is nginx's
CLIENT_CLOSED_REQUEST = 499

#: statuses that say when to come again
_TRY_AGAIN = (HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_ROUTE_CODES = {404: "route_not_found", 405: "method_not_allowed", 415: "unsupported_media_type"}
_INTERNAL = "Something failed on our side. Try again; if it stays, report the trace id."


class FieldProblem(BaseModel):
    """One field at fault."""

    field: str
    detail: str


class ExamProblem(BaseModel):
    """One mistake in an exam, with the line it stands in where that is known."""

    field: str
    line: int | None
    column: int | None
    message: str
    remedy: str


class Problem(BaseModel):
    """A problem document (RFC 9457); `code` is stable, the texts are not."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:assay:problem:not_found",
                    "title": "Not found",
                    "status": 404,
                    "detail": "There is no batch 0197c1de-1111-7000-8000-000000000000.",
                    "code": "not_found",
                    "field": "batch_id",
                    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str
    code: str
    trace_id: str
    field: str | None = None
    errors: list[FieldProblem | ExamProblem] | None = None


class ProblemResponse(JSONResponse):
    """A problem document as the answer."""

    media_type = MEDIA_TYPE


def status_of(condition: type[AssayError]) -> int:
    """The status that a condition is answered with."""
    return next(STATUSES[each] for each in condition.__mro__ if each in STATUSES)


def problem_of(error: AssayError, trace_id: str) -> dict[str, Any]:
    """The problem document of a condition; a failure of ours says nothing of its inside."""
    status = status_of(type(error))
    detail = _INTERNAL if status == HTTPStatus.INTERNAL_SERVER_ERROR else error.message
    field = {} if error.field is None else {"field": error.field}
    return {**_document(status, error.code, detail, trace_id), **field}


def answer_error(scope: Scope, error: AssayError, **more: Any) -> ProblemResponse:
    """The response to a condition, with `more` members in its document."""
    status = status_of(type(error))
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("request_failed", code=error.code, message=error.message, exc_info=not error.expected)
    document = {**problem_of(error, trace_id_of(scope)), **_mistakes(error), **more}
    return ProblemResponse(document, status, headers=_headers(error, status))


def _mistakes(error: AssayError) -> dict[str, Any]:
    if not isinstance(error, InvalidExam) or not error.mistakes:
        return {}
    listed = [
        ExamProblem(
            field=each.path or "exam",
            line=each.line,
            column=each.column,
            message=each.reason,
            remedy=each.remedy,
        )
        for each in error.mistakes
    ]
    return {"errors": [each.model_dump() for each in listed]}


def answer_defect(scope: Scope, error: Exception) -> ProblemResponse:
    """The response to an error that nobody foresaw; the log has the error, the client the trace id."""
    log.error("request_crashed", path=scope.get("path"), exc_info=error)
    return ProblemResponse(_document(500, "internal_error", _INTERNAL, trace_id_of(scope)), 500)


class Carried(RouteError):
    """A condition on its way through a library that swallows, or changes, every other exception.

    FastAPI's own kind: what is only Starlette's is swallowed, too.
    """

    def __init__(self, error: AssayError) -> None:
        super().__init__(status_of(type(error)), error.message)
        self.error = error

    @classmethod
    @contextmanager
    def errors(cls) -> Iterator[None]:
        """Carry the conditions that the block raises."""
        try:
            yield
        except AssayError as error:
            raise cls(error) from error


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of the app a problem document."""
    app.add_exception_handler(AssayError, _answer_condition)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route, for the OpenAPI document."""
    return {status: _described(status) for status in statuses}


def _described(status: int) -> dict[str, Any]:
    example = {
        "type": "urn:assay:problem:" + _EXAMPLE_CODES[status],
        "title": _title(_EXAMPLE_CODES[status]),
        "status": status,
        "detail": _EXAMPLE_DETAILS[status],
        "code": _EXAMPLE_CODES[status],
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    }
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        "description": HTTPStatus(status).phrase,
        "content": {MEDIA_TYPE: {"schema": schema, "example": example}},
    }


_EXAMPLE_CODES = {
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
    413: "limit_exceeded",
    415: "unsupported_media_type",
    422: "invalid_input",
    429: "rate_limited",
    503: "postgres_unavailable",
}
_EXAMPLE_DETAILS = {
    401: "This request needs a key: send 'Authorization: Bearer <key>' or 'X-API-Key: <key>'.",
    403: "This key lacks the scope 'submit'.",
    404: "There is no batch 0197c1de-1111-7000-8000-000000000000.",
    409: "The batch takes no more files: it has been completed.",
    413: "The file is larger than max_file_bytes (1,073,741,824 bytes).",
    415: "Send the exam as application/json or application/yaml.",
    422: "max_concurrent: Input should be less than or equal to 1000",
    429: "The key's limit of 60 requests a minute is reached; come again in 4 s.",
    503: "Postgres does not answer.",
}


async def _answer_condition(request: Request, error: Exception) -> Response:
    assert isinstance(error, AssayError)
    return answer_error(request.scope, error)


async def _answer_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [FieldProblem(field=_path(each["loc"]), detail=_reason(each)) for each in error.errors()]
    detail = "; ".join(f"{fault.field}: {fault.detail}" for fault in faults[:3])
    document = _document(422, InvalidInput.code, detail, trace_id_of(request.scope))
    listed = {"field": faults[0].field, "errors": [fault.model_dump() for fault in faults]}
    return ProblemResponse({**document, **listed}, 422)


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, Carried):
        return answer_error(request.scope, error.error)
    code = _ROUTE_CODES.get(error.status_code, f"http_{error.status_code}")
    detail = error.detail
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = "There is nothing at this address; /docs lists what there is."
    document = _document(error.status_code, code, detail, trace_id_of(request.scope))
    return ProblemResponse(document, error.status_code, headers=error.headers)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    log.info("client_left", path=request.url.path)
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def _document(status: int, code: str, detail: str, trace_id: str) -> dict[str, Any]:
    return {
        "type": f"urn:assay:problem:{code}",
        "title": _title(code),
        "status": status,
        "detail": detail,
        "code": code,
        "trace_id": trace_id,
    }


def _title(code: str) -> str:
    return code.replace("_", " ").capitalize()


def _headers(error: AssayError, status: int) -> dict[str, str]:
    if status == HTTPStatus.UNAUTHORIZED:
        return {"WWW-Authenticate": 'Bearer realm="assay"'}
    if error.retry_after_seconds is not None and status in _TRY_AGAIN:
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_seconds)))}
    return {}


def _path(location: Sequence[str | int]) -> str:
    """`("body", "questions", 0, "id")` as `questions[0].id`."""
    steps = location[1:] if location and location[0] in _SOURCES else location
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return path.removeprefix(".") or "body"


_SOURCES = ("body", "query", "path", "header", "cookie")


def _reason(fault: Mapping[str, Any]) -> str:
    if fault["type"] == "extra_forbidden":
        return "unknown field"
    return str(fault["msg"]).removeprefix("Value error, ")
