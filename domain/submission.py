"""Submissions: a student's text read as answers by question id.

What opens an answer, in this order; only the first kind that a file uses counts in it:

1. a question's id, or its number behind a word, in any order: `## q1`, `q1: …`, `Question 1`, `第一题`;
2. its number as a heading: `## 1`, `**2.**`, in the exam's order;
3. its bare number: `1. …`, `(2) …`, `三、…`, in the exam's order, all in the style of the first.

Numbers that start again at the first question are a list inside an answer. Fenced blocks are text.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from domain.errors import UnreadableSubmission
from domain.exam import NO_CHARACTER
from domain.labels import ANSWER_LABEL, NAMED, NUMBER, Labels

#: how much of a line is looked at for a label
_LABEL_LENGTH = 160
_MARK = r"[:.)：、．）\]】|=]|(?<=\s)[-–—](?=\s)"
_LEAD = r"(?P<bullet>[-*+•]\s+)?(?P<hash>\#{1,6}\s*)?(?P<bold>\*\*|__)?\s*"
#: after the mark of a number in a table's cell comes the next cell
_TAIL = rf"(?P<close>\*\*|__)?\s*(?P<mark>{_MARK})?(?P<late>\*\*|__)?(?:\s?\|(?=\s))?"
_BY_ID = re.compile(rf"{_LEAD}(?:question\s+)?[(\[]?(?P<id>[A-Za-z0-9_.-]*[A-Za-z0-9]){_TAIL}", re.IGNORECASE)
_BY_NAME = re.compile(rf"{_LEAD}{NAMED}{_TAIL}", re.IGNORECASE)
_BY_NUMBER = re.compile(
    rf"{_LEAD}(?P<open>[(（【\[])?\s?(?P<number>{NUMBER}|(?<![^\W_])[a-z](?![^\W_]))\s?{_TAIL}", re.IGNORECASE
)
_FENCE = re.compile(r"\s{0,3}(?P<ticks>`{3,}|~{3,})(?P<info>[^`\n]*)$")
_POINTS = re.compile(
    r"[(（\[]\s?\d{1,3}(?:[.,]\d)?\s?(?:points?|pts?\.?|marks?|punkte?|p\.?|分)\s?[)）\]]\s*[:：]?\s*",
    re.IGNORECASE,
)
#: numbered lines of one text that are looked at; an exam has 200 questions at most
_MAX_NUMBERED = 10_000
#: letters of a prompt that nobody writes as an answer by chance
_ECHO_LENGTH = 12


class _Kind(IntEnum):
    NAMED = 1
    HEADING = 2
    BARE = 3


@dataclass(frozen=True)
class _Opening:
    """A line that may open an answer: where the line and the text after its label begin."""

    kind: _Kind
    question: int
    line: int
    rest: int
    style: tuple[str, ...] = ()


def answers_in_text(text: str, prompts: Mapping[str, str]) -> dict[str, str]:
    """The answers in a text, each a verbatim part of it; `prompts` by question id in the exam's order.

    Without any heading the whole text answers a single question. A prompt that is repeated above its answer
    is no part of it. Raises `UnreadableSubmission`, whose message is stored in the clear: it quotes nothing.
    """
    labels = Labels(list(prompts))
    openings = _chosen(list(_openings(text, labels)), single=len(prompts) == 1)
    spans = _spans(text, openings)
    if not spans and len(prompts) == 1:
        spans = {0: (0, len(text))}
    if not spans:
        raise UnreadableSubmission(
            "No answer found. Begin each answer with its question's id on a line of its own, "
            f"such as '## {next(iter(prompts), 'q1')}'.",
            field="file",
        )
    found = {labels.ids[index]: text[start:end].strip() for index, (start, end) in spans.items()}
    return _checked({each: _without_echo(found[each], prompts[each]) for each in labels.ids if each in found})


def answers_in_json(text: str, prompts: Mapping[str, str]) -> dict[str, str]:
    """The answers in `{"answers": {"q1": "…"}}`, or in an object of the questions itself."""
    document = _parsed(text)
    answers = document.get("answers", document) if isinstance(document, dict) else None
    if not isinstance(answers, dict):
        raise UnreadableSubmission(
            'No answers in the JSON; expected {"answers": {"q1": "…"}}.', field="answers"
        )
    labels = Labels(list(prompts))
    found: dict[str, str] = {}
    for key, value in answers.items():
        index = labels.find(str(key))
        if index is None:
            continue
        if labels.ids[index] in found:
            raise UnreadableSubmission(
                f"{labels.ids[index]} is answered twice; keep one of the two.", field="answers"
            )
        found[labels.ids[index]] = _plain(value)
    if not found:
        raise UnreadableSubmission(
            f'No answer found. Name each one by its question\'s id, such as "{next(iter(prompts), "q1")}".',
            field="answers",
        )
    return _checked(found)


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UnreadableSubmission(
            "JSON nested too deeply. Write each answer as a plain string.", field="file"
        ) from error
    except ValueError as error:
        raise UnreadableSubmission(
            f"No valid JSON: {error}. Repair it, or hand in the answers as text.", field="file"
        ) from error


def _plain(value: object) -> str:
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _checked(answers: Mapping[str, str]) -> dict[str, str]:
    for question_id, answer in answers.items():
        if NO_CHARACTER.search(answer):
            raise UnreadableSubmission(
                f"The answer to {question_id} holds an escape that is no character; take it out.",
                field="file",
            )
    return {question_id: answer for question_id, answer in answers.items() if answer}


# --- which lines open an answer ----------------------------------------------------------------------


def _openings(text: str, labels: Labels) -> Iterator[_Opening]:
    lines = text.splitlines(keepends=True)
    fenced = _fenced(lines)
    position = 0
    for number, line in enumerate(lines):
        if number not in fenced and (opening := _opening(line, position, labels)) is not None:
            yield opening
        position += len(line)


def _fenced(lines: Sequence[str]) -> set[int]:
    """The lines of fenced blocks; a fence that nobody closes is none."""
    fenced: set[int] = set()
    begin: int | None = None
    ticks = ""
    for number, line in enumerate(lines):
        # only a line with the mark is worth the pattern
        fence = _FENCE.match(line[:_LABEL_LENGTH]) if "```" in line or "~~~" in line else None
        if fence is None:
            continue
        closes = begin is not None and fence["ticks"].startswith(ticks) and not fence["info"].strip()
        if begin is not None and closes:
            fenced.update(range(begin, number + 1))
            begin = None
        elif begin is None or fence["info"].strip():
            begin, ticks = number, fence["ticks"]
    return fenced


def _opening(line: str, position: int, labels: Labels) -> _Opening | None:
    stripped = line.lstrip()
    indent = len(line) - len(stripped)
    head = stripped[:_LABEL_LENGTH].rstrip("\r\n")
    named, question = _named(head, labels)
    if named is not None and question is not None:
        return _if_heading(_Kind.NAMED, question, named, position, position + indent)
    if match := _BY_NUMBER.match(head):
        return _by_number(match, line[:indent], position, labels)
    return None


def _named(head: str, labels: Labels) -> tuple[re.Match[str] | None, int | None]:
    match = _BY_ID.match(head)
    # ids such as 1 or b are what lists are numbered by, too
    if match and len(match["id"]) > 1 and not match["id"].isdecimal():
        question = labels.by_id(match["id"])
        if question is not None:
            return match, question
    match = _BY_NAME.match(head)
    return match, labels.by_number(match["named"] or match["counted"]) if match else None


def _if_heading(
    kind: _Kind, question: int, match: re.Match[str], line: int, head: int, style: tuple[str, ...] = ()
) -> _Opening | None:
    """The opening, unless the line goes on as a sentence: "q1 is the question that I like"."""
    rest = match.string[match.end() :]
    marked = match["mark"] or match["close"] or match["late"] or match["hash"]
    if match["mark"] in (".", ")", "．", "）") and rest[:1].isdecimal():
        return None  # 1.5 volts
    if match["mark"] in (".", ")") and kind is _Kind.NAMED and rest and not rest[0].isspace():
        marked = match["hash"] or match["late"] or not rest[0].isascii()
    apart = match[0][-1:].isspace() or match["close"] or _POINTS.match(rest)
    if match["mark"] is None and rest and not apart:
        return None  # q1st
    if rest.strip() and not marked and not _POINTS.match(rest.strip()):
        return None
    return _Opening(kind, question, line, head + match.end(), style)


def _by_number(match: re.Match[str], indent: str, position: int, labels: Labels) -> _Opening | None:
    number = match["number"]
    question = labels.by_number(number)
    if question is None:
        question = labels.by_id(number)
    if question is None or match["bullet"]:
        return None
    kind = _Kind.HEADING if match["hash"] or match["bold"] else _Kind.BARE
    if kind is _Kind.BARE and not match["mark"]:
        return None  # a page's number, or a sentence
    if match["mark"] in (":", "=", "|") and match.string[match.end() : match.end() + 1].isdecimal():
        return None  # 1:30
    script = (
        "letter" if number.isalpha() and number.isascii() else "digit" if number[0].isdecimal() else "han"
    )
    style = (indent, match["hash"] or "", match["open"] or "", match["mark"] or "", script)
    return _if_heading(kind, question, match, position, position + len(indent), style)


def _chosen(openings: list[_Opening], *, single: bool) -> list[_Opening]:
    """Those of the first kind that the file uses; a single question's text may well have a numbered list."""
    kind = min((each.kind for each in openings), default=_Kind.NAMED)
    if kind is not _Kind.NAMED and single:
        return []
    of_kind = [each for each in openings if each.kind is kind]
    if kind is _Kind.NAMED:
        return of_kind
    return _in_order([each for each in of_kind if each.style == of_kind[0].style][:_MAX_NUMBERED])


def _in_order(openings: list[_Opening]) -> list[_Opening]:
    """Those that run in the exam's order, without the lists inside answers."""
    last_at = {each.question: position for position, each in enumerate(openings)}
    chosen: list[_Opening] = []
    last = -1
    #: the number that would continue the list inside the current answer
    inner: int | None = None
    for position, each in enumerate(openings):
        comes_later = any(last_at.get(skipped, -1) > position for skipped in range(last + 1, each.question))
        if each.question == 0 and last >= 0:
            inner = 1
        elif inner == each.question and not (
            # it continues the list and the exam; it is the exam's if no other line is, and a list has two
            each.question == last + 1 and inner > 1 and last_at[each.question] == position
        ):
            inner += 1
        elif each.question > last and not comes_later:
            chosen.append(each)
            last, inner = each.question, None
    return chosen


def _spans(text: str, openings: Sequence[_Opening]) -> dict[int, tuple[int, int]]:
    """Where each question's answer stands: the first heading wins, unless nothing follows it."""
    spans: dict[int, tuple[int, int]] = {}
    current: int | None = None
    for each in openings:
        if current is not None:
            spans[current] = (spans[current][0], each.line)
        known = spans.get(each.question)
        if known is None or not text[slice(*known)].strip():
            current = each.question
            spans[current] = (each.rest, len(text))
        elif current is not None:
            spans[current] = (spans[current][0], len(text))
    return spans


# --- what of it is the student's ---------------------------------------------------------------------


def _without_echo(answer: str, prompt: str) -> str:
    """The answer without points, prompt and "Answer:" before it."""
    start = _skip(_POINTS, answer, 0)
    if words := prompt.split():
        # a short prompt may be a part of the answer, unless it stands on a line of its own
        end = r"[*_]*\s*" if len("".join(words)) >= _ECHO_LENGTH else r"[*_]*[^\S\n]*\n\s*(?=\S)"
        echo = re.compile(r"[*_>\s]*" + r"[*_>\s]+".join(map(re.escape, words)) + end, re.IGNORECASE)
        start = _skip(echo, answer, start)
    start = _skip(ANSWER_LABEL, answer, _skip(_POINTS, answer, start))
    return answer[start:].strip()


def _skip(pattern: re.Pattern[str], text: str, start: int) -> int:
    match = pattern.match(text, start)
    return match.end() if match else start
