"""Submissions: a student's file read as answers by question id."""

import json
import re
from collections.abc import Collection

from domain.errors import UnreadableSubmission
from domain.exam import NO_CHARACTER

_HEADING = re.compile(
    r"""^\s*
        (?:\#{1,6}\s*)?                     # a Markdown heading, or none
        (?:\*\*)?                           # or bold
        (?:question\s+)?
        (?P<id>[A-Za-z0-9_.-]*[A-Za-z0-9])
        (?:\*\*)?
        \s*(?P<mark>[:.)：、]?)(?:\*\*)?
        (?:(?:\s+|(?<=[:：、])|(?<=[:：、]\*\*))(?P<rest>\S.*|))?$""",
    re.VERBOSE | re.IGNORECASE,
)


def read_submission(name: str, content: bytes, question_ids: Collection[str]) -> dict[str, str]:
    """The answers in a .txt, .md or .json file, by question id; unanswered questions are left out.

    Raises `UnreadableSubmission` where no answer can be found, with the reason and the way out, and without
    the file's name: the message goes into the workflow's history, which is stored in the clear.
    """
    text = _decode(content)
    answers = _from_json(text) if name.lower().endswith(".json") else _from_text(text, question_ids)
    known = {question_id.casefold(): question_id for question_id in question_ids}
    found = {known[key.casefold()]: answer for key, answer in answers.items() if key.casefold() in known}
    if not found:
        raise UnreadableSubmission(
            "No answer found. Begin each answer with its question's id on a line of its own, "
            f"such as '## {next(iter(question_ids), 'q1')}'.",
            field="file",
        )
    for question_id, answer in found.items():
        if NO_CHARACTER.search(answer):
            raise UnreadableSubmission(
                f"The answer to {question_id} holds an escape that is no character.", field="file"
            )
    return {question_id: answer for question_id, answer in found.items() if answer}


def _decode(content: bytes) -> str:
    if not content.strip():
        raise UnreadableSubmission("The file is empty.", field="file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableSubmission(
            f"Byte {error.start} is not UTF-8 text. Save the file as UTF-8 and upload it again.",
            field="file",
        ) from error
    if "\0" in text:
        raise UnreadableSubmission("A binary file, not text.", field="file")
    return text


def _from_json(text: str) -> dict[str, str]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableSubmission(f"No valid JSON: {error}.", field="file") from error
    answers = document.get("answers") if isinstance(document, dict) else None
    if not isinstance(answers, dict):
        raise UnreadableSubmission(
            'Expected {"answers": {"q1": "…"}}.',
            field="answers",
        )
    return {str(key): _plain(value) for key, value in answers.items()}


def _plain(value: object) -> str:
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _from_text(text: str, question_ids: Collection[str]) -> dict[str, str]:
    known = {question_id.casefold() for question_id in question_ids}
    collected: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.splitlines():
        opened = _heading(line, known)
        # the first heading of an id wins: "q1:" again inside an answer is the student's text
        if opened is not None and opened[0] not in collected:
            current = collected.setdefault(opened[0], [])
            if opened[1]:
                current.append(opened[1])
        elif current is not None:
            current.append(line)
    return {key: "\n".join(lines).strip() for key, lines in collected.items()}


def _heading(line: str, known: Collection[str]) -> tuple[str, str] | None:
    """The question id that a line opens and the text after it on the same line."""
    match = _HEADING.match(line)
    if match is None or match["id"].casefold() not in known:
        return None
    rest = (match["rest"] or "").strip()
    # "q1 is the question I like" is a sentence; "q1: TCP" and "## q1" are headings
    if rest and not match["mark"]:
        return None
    return match["id"].casefold(), rest
