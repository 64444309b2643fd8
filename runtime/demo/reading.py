"""The classes' answers as the river reads them, to hold quotes and marks against."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from activities.intake.reader import Intake
from domain.errors import UnreadableSubmission
from domain.exam import Exam
from domain.submission_table import StudentRow, Table
from runtime.demo.classes import SchoolClass

#: answers by question id, by submission
Answers = dict[str, dict[str, str]]


async def read_class_answers(school_class: SchoolClass) -> Answers:
    """The answers of every submission that can be read."""
    # no text recognition: none of the files that can be read needs it
    intake = Intake(recognition=False)
    read = await asyncio.gather(
        *(read_file(path, school_class.exam, intake) for path in school_class.answer_files),
        return_exceptions=True,
    )
    return _gathered(read)


def _gathered(read: Sequence[Answers | BaseException]) -> Answers:
    answers: Answers = {}
    for each in read:
        if isinstance(each, dict):
            answers |= each
        elif not isinstance(each, UnreadableSubmission):
            raise each
    return answers


async def read_file(path: Path, exam: Exam, intake: Intake) -> Answers:
    """The answers in a file: one submission's, or those of a table's rows; `UnreadableSubmission` if none."""
    content = await asyncio.to_thread(path.read_bytes)
    if path.suffix == ".csv":
        return _rows(Table.read(content), exam)
    return {path.name: await intake.read(path.name, content, exam.questions)}


def _rows(table: Table, exam: Exam) -> Answers:
    columns = table.answer_columns({question.id: question.prompt for question in exam.questions})
    rows = [
        StudentRow(row.number, student, table.answers(row, columns))
        for row, student in table.students(table.student_column())
    ]
    return {row.name: row.answers for row in rows}
