"""A table of submissions arrives: a CSV, a row a student, each stored as a submission of its own."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict

from api.bodies import read_body
from api.dependencies import Services, ServicesOf, Submitter, check_id
from api.errors import answer_error, problems
from api.uploads import Overwrite, Statement, check_name, store_upload
from api.wire import BatchId
from domain.errors import AssayError, FileExists, InvalidInput, LimitExceeded
from domain.gateway import Caller
from domain.ports import StoredUpload
from domain.submission_table import StudentRow, Table

router = APIRouter(prefix="/v1/batches", tags=["files"])

MAX_TABLE_BYTES = 64 * 1024**2
#: rows stored at a time: their objects in parallel, their database rows one after another
_ROWS_AT_ONCE = 8


class RefusedRow(BaseModel):
    """A row that became no submission; the others did."""

    row: int
    student: str
    code: str
    message: str


class StoredTable(BaseModel):
    """What became of a table's rows, and which columns they were read from."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "rows": 3,
                    "created": 2,
                    "unchanged": 0,
                    "replaced": 0,
                    "student_column": "Email address",
                    "columns": {"q1": "Response 1", "q2": "Response 2"},
                    "questions_without_column": [],
                    "refused": [
                        {
                            "row": 4,
                            "student": "",
                            "code": "invalid_input",
                            "message": "The row names no student.",
                        }
                    ],
                }
            ]
        }
    )

    rows: int
    created: int = 0
    unchanged: int = 0
    replaced: int = 0
    student_column: str
    columns: dict[str, str]
    questions_without_column: list[str]
    refused: list[RefusedRow]


_TABLE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "text/csv": {
                "schema": {"type": "string"},
                "example": 'student,q1,q2\nli-lei,DNS,"SYN, SYN-ACK, ACK"\n',
            }
        },
    }
}


@router.post(
    "/{batch_id}/submissions",
    status_code=201,
    summary="Hand in a table of answers",
    description=f"A CSV of at most {MAX_TABLE_BYTES // 1024**2} MiB, a row a student, columns mapped to "
    "questions. Each row becomes the submission `<student>.json`. Commas, semicolons or tabs; UTF-8, or "
    "another encoding that can be told. The whole table is checked before anything is stored; a row that "
    "cannot be stored is listed under `refused`, and the others are. A repetition is a no-op (200).",
    responses={
        200: {"model": StoredTable, "description": "All rows were there, or replaced others."},
        **problems(401, 403, 404, 409, 413, 422, 503),
    },
    openapi_extra=_TABLE_BODY,
    response_model=StoredTable,
)
async def post_table(
    batch_id: BatchId,
    request: Request,
    response: Response,
    caller: Submitter,
    services: ServicesOf,
    student: Annotated[
        str | None,
        Query(max_length=255, description="The column that names the student; by default a usual one."),
    ] = None,
    map_: Annotated[
        list[str],
        Query(alias="map", description="`q1=COLUMN`, repeated; by default columns titled as their question."),
    ] = [],  # noqa: B006  # FastAPI copies it
    overwrite: Overwrite = False,
) -> StoredTable | Response:
    """What became of the rows."""
    batch_id = check_id("batch", batch_id)
    prompts = await _prompts(services, caller, batch_id)
    stated = stated_columns(map_)
    body = await read_body(request, MAX_TABLE_BYTES, "max_table_bytes")
    # to a thread: a large table takes seconds, and other requests must not wait for them
    hand_in = await asyncio.to_thread(HandIn.read, body, prompts, student, stated, services.limits.max_files)
    answer = hand_in.answer
    try:
        await _store_rows(services, caller, batch_id, hand_in.rows, answer, overwrite=overwrite)
    except AssayError as error:
        # the batch itself refuses: what is stored stays, and repeating the request is safe
        return answer_error(request.scope, error, created=answer.created, unchanged=answer.unchanged)
    answer.refused.sort(key=lambda each: each.row)
    response.status_code = 201 if answer.created else 200
    return answer


@dataclass(frozen=True)
class HandIn:
    """A checked table: the rows to store, and the answer with those that cannot be."""

    rows: list[StudentRow]
    answer: StoredTable

    @classmethod
    def read(
        cls,
        body: bytes,
        prompts: Mapping[str, str],
        student: str | None,
        stated: Mapping[str, str],
        max_rows: int,
    ) -> "HandIn":
        """The table in the body; `InvalidInput` or `LimitExceeded` where it is wrong as a whole."""
        table = Table.read(body)
        if len(table.rows) > max_rows:
            raise LimitExceeded(
                f"The table has {len(table.rows):,} rows; at most {max_rows:,} (max_files) are possible.",
                field="body",
            )
        by = table.student_column(student)
        columns = table.answer_columns(prompts, stated)
        answer = StoredTable(
            rows=0,
            student_column=table.titles[by],
            columns={question_id: table.titles[place] for question_id, place in columns.items()},
            questions_without_column=[each for each in prompts if each not in columns],
            refused=[],
        )
        rows = []
        for row, name in table.students(by):
            try:
                rows.append(_student_row(StudentRow(row.number, name, table.answers(row, columns))))
            except InvalidInput as error:
                answer.refused.append(_refusal(row.number, name, error))
        answer.rows = len(rows) + len(answer.refused)
        return cls(rows, answer)


def _student_row(row: StudentRow) -> StudentRow:
    if not row.student:
        raise InvalidInput("The row names no student.", field="student")
    check_name(row.name)
    return row


def _refusal(number: int, student: str, error: AssayError) -> RefusedRow:
    return RefusedRow(row=number, student=student[:255], code=error.code, message=error.message)


async def _prompts(services: Services, caller: Caller, batch_id: str) -> dict[str, str]:
    batch = await services.batches.read(caller.tenant_id, batch_id)
    if batch.opening.exam_id is None:
        raise InvalidInput("A table of answers needs a batch with an exam.", field="batch_id")
    exam = await services.exams.read(batch.opening.exam_id, batch.rubric_version)
    return {question.id: question.prompt for question in exam.questions}


def stated_columns(pairs: Sequence[str]) -> dict[str, str]:
    """The columns by question id that pairs such as `q1=COLUMN` state; raises `InvalidInput`."""
    mapping: dict[str, str] = {}
    for pair in pairs:
        question_id, equals, column = pair.partition("=")
        if not equals or not question_id.strip() or not column.strip():
            raise InvalidInput(f"map: {pair[:100]!r} is not of the form q1=COLUMN.", field="map")
        if mapping.setdefault(question_id.strip(), column) != column:
            raise InvalidInput(f"map: {question_id.strip()!r} is mapped to two columns.", field="map")
    return mapping


async def _store_rows(
    services: Services,
    caller: Caller,
    batch_id: str,
    rows: Sequence[StudentRow],
    answer: StoredTable,
    *,
    overwrite: bool,
) -> None:
    """Store the rows and count them in the answer; raises what the batch as a whole refuses."""
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        together = rows[start : start + _ROWS_AT_ONCE]
        stored = await asyncio.gather(
            *(_store_row(services, caller, batch_id, row, overwrite=overwrite) for row in together),
            return_exceptions=True,
        )
        for row, outcome in zip(together, stored, strict=True):
            _count(row, outcome, answer)
        for outcome in stored:
            if isinstance(outcome, BaseException) and not isinstance(outcome, FileExists):
                raise outcome


def _count(row: StudentRow, outcome: StoredUpload | BaseException, answer: StoredTable) -> None:
    if isinstance(outcome, FileExists):
        answer.refused.append(_refusal(row.number, row.student, outcome))
    elif isinstance(outcome, StoredUpload):
        answer.created += outcome.created
        answer.replaced += outcome.replaced_object_key is not None
        answer.unchanged += not outcome.created and outcome.replaced_object_key is None


async def _store_row(
    services: Services, caller: Caller, batch_id: str, row: StudentRow, *, overwrite: bool
) -> StoredUpload:
    statement = Statement(name=row.name, overwrite=overwrite)
    return await store_upload(services, caller, batch_id, statement, _once(row.content))


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
