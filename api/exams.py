"""Exams with their rubrics: handed in as JSON or YAML, never edited in place."""

import asyncio
import json
from dataclasses import asdict
from typing import Annotated, Any

import yaml
from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from api.bodies import read_body
from api.dependencies import Reader, ServicesOf, Submitter, check_id
from api.errors import problems
from api.idempotency import Creation, IdempotencyKey, create_once, request_fingerprint
from api.pages import Page, PageNumber, PageSize
from api.wire import ExamId
from domain.errors import InvalidExam
from domain.exam import Exam, read_exam

router = APIRouter(prefix="/v1/exams", tags=["exams"])

JSON_TYPES = frozenset({"application/json"})
YAML_TYPES = frozenset({"application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"})

#: an exam needs five levels; what goes deeper is meant to exhaust a stack
MAX_DEPTH = 30
#: integers beyond it are not exact in JSON, nor in a float
MAX_INTEGER = 2**53

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_EXAMPLE: dict[str, Any] = {
    "title": "Networks, midterm",
    "language": "en",
    "questions": [
        {
            "id": "q1",
            "type": "short_answer",
            "prompt": "Why does TCP need three segments to open a connection?",
            "points": 4,
            "reference": "Both sides must announce and acknowledge a sequence number.",
            "criteria": [
                {"id": "both_numbers", "points": 2, "description": "Both sides announce a number."},
                {"id": "acknowledged", "points": 2, "description": "Both numbers are acknowledged."},
            ],
        }
    ],
}
_ID = "0197c1de-1111-7000-8000-000000000000"
_SUMMARY: dict[str, Any] = {"id": _ID, "title": "Networks, midterm", "language": "en", "rubric_version": 1}


class CriterionView(BaseModel):
    """One thing that earns points."""

    id: str
    points: float
    description: str


class QuestionView(BaseModel):
    """A question with its rubric."""

    id: str
    type: str
    prompt: str
    points: float
    criteria: list[CriterionView]
    answer: str
    accept: list[str]
    tolerance: float
    unit: str
    reference: str


class ExamSummary(BaseModel):
    """An exam without its questions."""

    model_config = ConfigDict(json_schema_extra={"examples": [_SUMMARY]})

    id: str
    title: str
    language: str
    rubric_version: int


class ExamView(ExamSummary):
    """An exam at its newest rubric version."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **_SUMMARY,
                    "max_points": 4.0,
                    "questions": [
                        {
                            "answer": "",
                            "accept": [],
                            "tolerance": 0.0,
                            "unit": "",
                            **_EXAMPLE["questions"][0],
                        }
                    ],
                }
            ]
        }
    )

    max_points: float
    questions: list[QuestionView]


async def _body(request: Request, caller: Submitter, services: ServicesOf) -> bytes:
    return await read_body(request, services.limits.max_exam_bytes, "max_exam_bytes")


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"type": "object"}, "example": _EXAMPLE},
            "application/yaml": {"schema": {"type": "object"}, "example": yaml.safe_dump(_EXAMPLE)},
        },
    }
}


@router.post(
    "",
    status_code=201,
    summary="Hand in an exam",
    description="Questions with their rubrics, as JSON or YAML. The exam starts at rubric version 1.",
    responses=problems(401, 403, 409, 413, 415, 422, 503),
    openapi_extra=_BODY,
)
async def create_exam(
    request: Request,
    response: Response,
    caller: Submitter,
    services: ServicesOf,
    body: Annotated[bytes, Depends(_body)],
    idempotency_key: IdempotencyKey = None,
) -> ExamView:
    """The stored exam, with its id and its address."""
    content_type = request.headers.get("content-type", "application/yaml").partition(";")[0].strip().lower()
    # a large document takes seconds to parse: not on the event loop
    exam = await asyncio.to_thread(parse_exam, body, content_type)
    creation = Creation(
        create=lambda exam_id: services.exams.create(caller.tenant_id, exam, exam_id),
        read=lambda exam_id: services.exams.read_of_tenant(caller.tenant_id, exam_id),
    )
    fingerprint = request_fingerprint("exam", body)
    once = await create_once(services, caller.tenant_id, idempotency_key, fingerprint, creation)
    once.mark(response)
    response.headers["Location"] = f"/v1/exams/{once.created.id}"
    return _view(once.created)


@router.get(
    "",
    summary="List the exams",
    description="Newest first, without their questions.",
    responses=problems(401, 403, 422, 503),
)
async def list_exams(
    caller: Reader, services: ServicesOf, page: PageNumber = 1, page_size: PageSize = 20
) -> Page[ExamSummary]:
    """One page of the tenant's exams."""
    exams, total = await services.exams.list_of_tenant(caller.tenant_id, page, page_size)
    items = [_summary(each) for each in exams]
    return Page(items=items, page=page, page_size=page_size, total=total)


@router.get(
    "/{exam_id}",
    summary="Read an exam",
    description="With its questions and rubrics, at the newest rubric version.",
    responses=problems(401, 403, 404, 422, 503),
)
async def read_one_exam(exam_id: ExamId, caller: Reader, services: ServicesOf) -> ExamView:
    """The exam with its questions."""
    return _view(await services.exams.read_of_tenant(caller.tenant_id, check_id("exam", exam_id)))


def parse_exam(body: bytes, content_type: str) -> Exam:
    """The exam in a JSON or YAML body; `InvalidExam` names the line or the field at fault."""
    if content_type in JSON_TYPES:
        document = _from_json(body)
    elif content_type in YAML_TYPES:
        document = _from_yaml(body)
    else:
        raise HTTPException(415, f"{content_type}: send the exam as application/json or application/yaml.")
    _check_storable(document, "")
    return read_exam(document)


def _from_json(body: bytes) -> object:
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidExam(f"No valid JSON: {where}: {error.msg}.", field="body") from error
    except (ValueError, RecursionError) as error:
        raise InvalidExam(f"No valid JSON: {type(error).__name__}.", field="body") from error


def _from_yaml(body: bytes) -> object:
    try:
        text = body.decode("utf-8-sig")
        _check_shape(text)
        return yaml.load(text, Loader=_Loader)  # noqa: S506  # the safe loader, in C where there is one
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise InvalidExam(f"No valid YAML: {where}{error.problem or error.context}.", field="body") from error
    except UnicodeDecodeError as error:
        raise InvalidExam(f"No valid YAML: byte {error.start} is not UTF-8 text.", field="body") from error
    # YAML's own scalars (dates, numbers) fail as plain ValueErrors
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidExam(f"No valid YAML: {reason}.", field="body") from error


def _check_shape(text: str) -> None:
    """Refuse aliases (a few lines of them expand without bound) and depths that exhaust a stack."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            line = _line(event)
            raise InvalidExam(f"line {line}: write it out; aliases (*name) are not read.", field="body")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            line = _line(event)
            raise InvalidExam(f"line {line}: nested deeper than {MAX_DEPTH} levels.", field="body")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


def _check_storable(value: object, where: str, depth: int = 0) -> None:
    """Refuse what parsers let through and no store keeps: NUL, half surrogates, endless numbers."""
    if depth > MAX_DEPTH:
        raise InvalidExam(f"{where[:100]}: nested deeper than {MAX_DEPTH} levels.", field="body")
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= each <= "\udfff" for each in value)):
        raise InvalidExam(
            f"{where}: holds a character that is no text (NUL or half a surrogate).", field=where
        )
    if isinstance(value, (int, float)) and not abs(value) <= MAX_INTEGER:
        raise InvalidExam(f"{where}: expected a number between -2^53 and 2^53.", field=where)
    if isinstance(value, dict):
        for key, each in value.items():
            _check_storable(key, f"{where}.{key}".lstrip("."), depth)
            _check_storable(each, f"{where}.{key}".lstrip("."), depth + 1)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            _check_storable(each, f"{where}[{index}]", depth + 1)


def _summary(exam: Exam) -> ExamSummary:
    return ExamSummary(
        id=exam.id, title=exam.title, language=exam.language, rubric_version=exam.rubric_version
    )


def _view(exam: Exam) -> ExamView:
    return ExamView.model_validate({**asdict(exam), "max_points": exam.max_points})
