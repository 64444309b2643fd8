"""The intake: bytes and a name in, answers by question id out."""

import asyncio
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from activities.intake.confinement import Confinement
from activities.intake.kinds import Kind, kind_of
from activities.intake.notebook import read_notebook
from domain.decoding import decode
from domain.errors import InvalidInput, UnreadableSubmission
from domain.exam import Question
from domain.submission import answers_in_json, answers_in_text
from domain.submission_table import Table

MAX_DOCUMENT_BYTES = 64 * 1024**2
MAX_TEXT_BYTES = 8 * 1024**2

_PLAIN_LIMITS = Confinement(seconds=30, memory_bytes=1024**3)
#: the engine takes half a gigabyte and three seconds, a page one second or more
_RECOGNITION_LIMITS = Confinement(seconds=180, memory_bytes=3 * 1024**3)

_DOCUMENTS = (Kind.WORD, Kind.PDF, Kind.PICTURE)
_NO_RECOGNITION = (
    "Text recognition is not installed here (`pip install 'assay[ocr]'` on the workers). "
    "Install it and grade again, or upload a file with text in it."
)


def _slots() -> asyncio.Semaphore:
    # more children than cores only take each other's time
    return asyncio.Semaphore(os.cpu_count() or 1)


@dataclass(frozen=True)
class Intake:
    """Reads submissions: plain formats in a thread, documents in confined children, one a core.

    `recognition` says whether pictures of text can be read, too.
    """

    recognition: bool
    confinement: Confinement = _PLAIN_LIMITS
    recognition_confinement: Confinement = _RECOGNITION_LIMITS
    _free: asyncio.Semaphore = field(default_factory=_slots)

    async def read(self, name: str, content: bytes, questions: Sequence[Question]) -> dict[str, str]:
        """The answers by question id; raises `UnreadableSubmission` with the reason and the way out."""
        kind = kind_of(name, content)
        prompts = {question.id: question.prompt for question in questions}
        _check_size(kind, content)
        if kind in _DOCUMENTS:
            text = await self._document(kind, content)
            return await asyncio.to_thread(answers_in_text, text, prompts)
        # to a thread: megabytes of text take seconds, and heartbeats must not wait for them
        return await asyncio.to_thread(_PLAIN[kind], content, prompts)

    async def _document(self, kind: Kind, content: bytes) -> str:
        if kind is Kind.PICTURE:
            return await self._recognised("picture", content, "A picture.")
        async with self._free:
            answer = await self.confinement.read(kind, content)
        if pages := answer.get("scanned"):
            return await self._recognised("scan", content, f"{_pages(pages)} of text, without text in it.")
        return str(answer["text"])

    async def _recognised(self, reader: str, content: bytes, what: str) -> str:
        if not self.recognition:
            raise UnreadableSubmission(f"{what} {_NO_RECOGNITION}", field="file")
        async with self._free:
            answer = await self.recognition_confinement.read(reader, content)
        if not (text := str(answer["text"])).strip():
            raise UnreadableSubmission(
                "No text was recognised. Scan it more clearly, or type the answers.", field="file"
            )
        return text


def _pages(pages: Sequence[int]) -> str:
    if len(pages) == 1:
        return f"Page {pages[0]} is a picture"
    shown = ", ".join(map(str, pages[:10])) + (" …" if len(pages) > 10 else "")
    return f"Pages {shown} are pictures"


def _check_size(kind: Kind, content: bytes) -> None:
    at_most = MAX_DOCUMENT_BYTES if kind in _DOCUMENTS else MAX_TEXT_BYTES
    if len(content) > at_most:
        raise UnreadableSubmission(
            f"The file has {len(content):,} bytes; at most {at_most:,} of this format are read. "
            "Upload the answers alone.",
            field="file",
        )


def _from_text(content: bytes, prompts: Mapping[str, str]) -> dict[str, str]:
    text = decode(content)
    return answers_in_json(text, prompts) if _is_json(text) else answers_in_text(text, prompts)


def _is_json(text: str) -> bool:
    """Whether a text of another name is the answers' JSON all the same."""
    if not (text.lstrip().startswith("{") and '"answers"' in text):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _from_json(content: bytes, prompts: Mapping[str, str]) -> dict[str, str]:
    return answers_in_json(decode(content), prompts)


def _from_notebook(content: bytes, prompts: Mapping[str, str]) -> dict[str, str]:
    return answers_in_text(read_notebook(decode(content)), prompts)


def _from_table(content: bytes, prompts: Mapping[str, str]) -> dict[str, str]:
    table = Table.read(content)
    if len(table.rows) != 1:
        raise UnreadableSubmission(
            f"The table has {len(table.rows):,} rows of answers, and one submission has one. "
            "Hand in a class's table with `assay grade exam.yaml answers.csv`, "
            "or POST /v1/batches/{batch_id}/submissions.",
            field="file",
        )
    try:
        columns = table.answer_columns(prompts)
    except InvalidInput as error:
        # its message lists the titles, and what a student writes is not for the workflow's history
        raise UnreadableSubmission(
            "No column is titled as a question of the exam. Title each by its question's id, such as "
            f"{next(iter(prompts), 'q1')}.",
            field="file",
        ) from error
    answers = table.answers(table.rows[0], columns)
    return {question_id: answer for question_id, answer in answers.items() if answer}


_PLAIN: dict[Kind, Callable[[bytes, Mapping[str, str]], dict[str, str]]] = {
    Kind.TEXT: _from_text,
    Kind.JSON: _from_json,
    Kind.NOTEBOOK: _from_notebook,
    Kind.TABLE: _from_table,
}
