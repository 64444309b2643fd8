"""The files of a batch and what they were given."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from api.dependencies import Reader, Services, ServicesOf, check_id
from api.errors import problems
from api.pages import Page, PageNumber, PageSize
from api.wire import BatchId, FileId, Time
from domain.batch import Batch, StoredFile
from domain.states import FileState

router = APIRouter(prefix="/v1/batches", tags=["files"])

_ID = "0197c1de-1111-7000-8000-000000000000"
_FILE: dict[str, Any] = {
    "file_id": "0197c1de-3333-7000-8000-000000000000",
    "batch_id": _ID,
    "name": "group B/李雷.txt",
    "size_bytes": 2048,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "state": "completed",
    "ordinal": 1,
    "generation": 1,
    "vehicle_id": "",
    "vin": "",
    "workflow_id": f"batch/{_ID}/file/0197c1de-3333-7000-8000-000000000000",
    "failure_code": None,
    "failure_message": None,
    "score": 3.5,
    "max_score": 4.0,
    "needs_review": False,
    "log": None,
    "created_at": "2026-01-02T03:04:05+00:00",
    "updated_at": "2026-01-02T03:05:06+00:00",
}
_QUESTION: dict[str, Any] = {
    "question_id": "q1",
    "score": 2.0,
    "max_score": 4.0,
    "specialist": "short_answer",
    "advisory": False,
    "review_reasons": [],
    "criteria": [
        {
            "criterion_id": "both_numbers",
            "points": 2.0,
            "max_points": 2.0,
            "reason": "Both numbers are named.",
            "quote": "each side sends its own number",
            "confidence": 0.9,
            "cannot_assess": False,
        }
    ],
    "tokens_in": 812,
    "tokens_out": 96,
}


class LogView(BaseModel):
    """A parsed log in figures; `coverage` is the share of its lines that templates count."""

    format: str
    lines: int
    parsed_lines: int
    coverage: float
    expanded_bytes: int
    templates: int
    signals: int
    levels: dict[str, int]
    first_at: str
    last_at: str
    incomplete: str


class FileView(BaseModel):
    """A file and where it stands."""

    model_config = ConfigDict(json_schema_extra={"examples": [_FILE]})

    file_id: str
    batch_id: str
    name: str
    size_bytes: int
    sha256: str
    state: FileState
    ordinal: int
    generation: int
    vehicle_id: str
    vin: str
    workflow_id: str | None
    failure_code: str | None
    failure_message: str | None
    score: float | None
    max_score: float | None
    needs_review: bool
    log: LogView | None
    created_at: Time
    updated_at: Time


class CriterionMark(BaseModel):
    """What one criterion earned and why; the quote stands verbatim in the answer."""

    criterion_id: str
    points: float
    max_points: float
    reason: str
    quote: str = ""
    confidence: float = 1.0
    cannot_assess: bool = False


class QuestionMark(BaseModel):
    """What one question earned."""

    question_id: str
    score: float
    max_score: float
    specialist: str = ""
    advisory: bool = False
    review_reasons: list[str] = []
    criteria: list[CriterionMark]
    tokens_in: int = 0
    tokens_out: int = 0


class SubmissionResults(BaseModel):
    """A submission's marks; none before its file is completed."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "submission_id": _FILE["file_id"],
                    "batch_id": _ID,
                    "name": _FILE["name"],
                    "state": "completed",
                    "detail": "graded",
                    "score": 2.0,
                    "max_score": 4.0,
                    "needs_review": False,
                    "results": [_QUESTION],
                }
            ]
        }
    )

    submission_id: str
    batch_id: str
    name: str
    state: FileState
    detail: str
    score: float | None
    max_score: float | None
    needs_review: bool
    results: list[QuestionMark]


@router.get(
    "/{batch_id}/files",
    summary="List a batch's files",
    description="In the order of their names.",
    responses=problems(401, 403, 404, 422, 503),
)
async def list_files(
    batch_id: BatchId,
    caller: Reader,
    services: ServicesOf,
    page: PageNumber = 1,
    page_size: PageSize = 20,
) -> Page[FileView]:
    """One page of the batch's files."""
    files, total = await services.batches.files(
        caller.tenant_id, check_id("batch", batch_id), page, page_size
    )
    items = [file_view(each) for each in files]
    return Page(items=items, page=page, page_size=page_size, total=total)


@router.get(
    "/{batch_id}/files/{file_id}/results",
    summary="Read a submission's marks",
    description="Points, reasons and quotes by question and criterion. Before the file is graded the answer "
    "has its state and no results.",
    responses=problems(401, 403, 404, 422, 503),
)
async def read_results(
    batch_id: BatchId, file_id: FileId, caller: Reader, services: ServicesOf
) -> SubmissionResults:
    """The marks, from the cache if they are there."""
    batch = await services.batches.read(caller.tenant_id, check_id("batch", batch_id))
    file = await services.batches.file(caller.tenant_id, batch.id, check_id("file", file_id))
    graded = file.state is FileState.COMPLETED
    results = await _results(services, batch, file) if graded else []
    return SubmissionResults(
        submission_id=file.id,
        batch_id=batch.id,
        name=file.name,
        state=file.state,
        detail="graded" if graded else _why_not_graded(file),
        score=file.score if graded else None,
        max_score=file.max_score if graded else None,
        needs_review=file.needs_review,
        results=[QuestionMark.model_validate(each) for each in results],
    )


def file_view(file: StoredFile) -> FileView:
    """The file as the API shows it."""
    return FileView(
        file_id=file.id,
        batch_id=file.batch_id,
        name=file.name,
        size_bytes=file.size_bytes,
        sha256=file.sha256,
        state=file.state,
        ordinal=file.ordinal,
        generation=file.generation,
        vehicle_id=file.vehicle_id,
        vin=file.vin,
        workflow_id=file.workflow_id,
        failure_code=file.failure_code,
        failure_message=file.failure_message,
        score=file.score,
        max_score=file.max_score,
        needs_review=file.needs_review,
        log=None if file.log is None else LogView(**vars(file.log), coverage=file.log.coverage),
        created_at=file.created_at,
        updated_at=file.updated_at,
    )


async def _results(services: Services, batch: Batch, file: StoredFile) -> list[dict[str, Any]]:
    if batch.opening.exam_id is None:
        return []
    exam = await services.exams.read(batch.opening.exam_id, batch.rubric_version)
    cached = await services.result_cache.read(file.id, [question.id for question in exam.questions])
    return cached if cached is not None else await services.results.of_submission(file.id)


def _why_not_graded(file: StoredFile) -> str:
    if file.state is FileState.FAILED:
        return f"not graded: {file.failure_code}: {file.failure_message}"
    return f"not graded: the file is {file.state}"
