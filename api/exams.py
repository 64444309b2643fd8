"""Exams with their rubrics: handed in as JSON or YAML, never edited in place."""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

import yaml
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from api.bodies import read_body
from api.dependencies import Reader, ServicesOf, Submitter, check_id, require
from api.errors import problems
from api.idempotency import Creation, IdempotencyKey, create_once, request_fingerprint
from api.pages import Page, PageNumber, PageSize
from api.wire import ExamId
from domain.errors import Forbidden
from domain.exam import Exam
from domain.exam_document import Format, read_document
from domain.exam_schema import MEDIA_TYPE, SCHEMA_ID, exam_schema
from domain.gateway import Caller

router = APIRouter(prefix="/v1", tags=["exams"])

FORMATS: Mapping[str, Format] = {
    "application/json": "json",
    "application/yaml": "yaml",
    "application/x-yaml": "yaml",
    "text/yaml": "yaml",
    "text/x-yaml": "yaml",
}

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

_UNSAID: dict[str, Any] = {"answer": "", "accept": [], "tolerance": 0.0, "guidelines": "", "examples": []}
_ASKED: dict[str, Any] = {"options": {}, "unit": ""}
_WHOLE: dict[str, Any] = {
    **_SUMMARY,
    "max_points": 4.0,
    "questions": [{**_UNSAID, **_ASKED, **each} for each in _EXAMPLE["questions"]],
}
_FOR_STUDENTS: dict[str, Any] = {
    **_SUMMARY,
    "max_points": 4.0,
    "questions": [
        {**{name: each[name] for name in ("id", "type", "prompt", "points")}, **_ASKED}
        for each in _EXAMPLE["questions"]
    ],
}


class CriterionView(BaseModel):
    """One thing that earns points."""

    id: str
    points: float
    description: str


class GradedExampleView(BaseModel):
    """An answer that a teacher has marked."""

    answer: str
    points: float
    by_criterion: dict[str, float]


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
    options: dict[str, str]
    guidelines: str
    examples: list[GradedExampleView]


class StudentQuestionView(BaseModel):
    """A question as students may see it."""

    id: str
    type: str
    prompt: str
    points: float
    options: dict[str, str]
    unit: str


class ExamSummary(BaseModel):
    """An exam without its questions."""

    model_config = ConfigDict(json_schema_extra={"examples": [_SUMMARY]})

    id: str
    title: str
    language: str
    rubric_version: int


class ExamView(ExamSummary):
    """An exam at its newest rubric version."""

    model_config = ConfigDict(json_schema_extra={"examples": [_WHOLE]})

    max_points: float
    questions: list[QuestionView]


class StudentExamView(ExamSummary):
    """An exam without anything that helps to answer it."""

    model_config = ConfigDict(json_schema_extra={"examples": [_FOR_STUDENTS]})

    max_points: float
    questions: list[StudentQuestionView]


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
    "/exams",
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
    "/exams",
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


Viewer = Annotated[Caller, Depends(require("read", "submit"))]
View = Annotated[
    Literal["grader", "student"] | None,
    Query(
        description="`student` leaves out what students must not see; a key without `read` gets that alone."
    ),
]


@router.get(
    "/exams/{exam_id}",
    summary="Read an exam",
    description=(
        "With its questions and rubrics, at the newest rubric version. A student's view has neither answers, "
        "references, guidelines, examples nor criteria, whose descriptions often tell the answer."
    ),
    responses={
        200: {"content": {"application/json": {"example": _WHOLE}}},
        **problems(401, 403, 404, 422, 503),
    },
)
async def read_one_exam(
    exam_id: ExamId, caller: Viewer, services: ServicesOf, view: View = None
) -> ExamView | StudentExamView:
    """The exam with its questions."""
    grades = bool({"read", "admin"} & set(caller.scopes))
    if view == "grader" and not grades:
        raise Forbidden(
            "This key lacks the scope 'read'; without it, view=student is what there is.", field="view"
        )
    exam = await services.exams.read_of_tenant(caller.tenant_id, check_id("exam", exam_id))
    return _view(exam) if grades and view != "student" else _student_view(exam)


class SchemaResponse(JSONResponse):
    """A JSON Schema as the answer."""

    media_type = MEDIA_TYPE


@router.get(
    "/schemas/exam",
    summary="Read the schema of exams",
    description="The JSON Schema of an exam's file, for editors and programs; needs no key.",
    response_class=SchemaResponse,
    responses={200: {"content": {MEDIA_TYPE: {"example": {"$id": SCHEMA_ID}}}}},
)
async def read_schema() -> SchemaResponse:
    """The schema under its stable `$id`."""
    return SchemaResponse(exam_schema())


def parse_exam(body: bytes, content_type: str) -> Exam:
    """The exam in a JSON or YAML body; `InvalidExam` has every mistake with its line."""
    if content_type not in FORMATS:
        raise HTTPException(415, f"{content_type}: send the exam as application/json or application/yaml.")
    return read_document(body, FORMATS[content_type]).exam()


def _summary(exam: Exam) -> ExamSummary:
    return ExamSummary(
        id=exam.id, title=exam.title, language=exam.language, rubric_version=exam.rubric_version
    )


def _view(exam: Exam) -> ExamView:
    questions = [
        {
            **asdict(question),
            "options": dict(question.options),
            "examples": [
                {**asdict(each), "by_criterion": dict(each.by_criterion)} for each in question.examples
            ],
        }
        for question in exam.questions
    ]
    return ExamView.model_validate(
        {**_summary(exam).model_dump(), "max_points": exam.max_points, "questions": questions}
    )


def _student_view(exam: Exam) -> StudentExamView:
    questions = [
        StudentQuestionView(
            id=question.id,
            type=question.type,
            prompt=question.prompt,
            points=question.points,
            options=dict(question.options),
            unit=question.unit,
        )
        for question in exam.questions
    ]
    return StudentExamView(**_summary(exam).model_dump(), max_points=exam.max_points, questions=questions)
