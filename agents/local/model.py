"""The embedded model: a fitted comparison, no key and no network; advisory, never a mark's only basis."""

import asyncio
import json
from collections.abc import Sequence
from functools import lru_cache

from agents.diagnosis.local import answer_case
from agents.local.marking import Mark, mark_answer
from agents.local.sentences import MAX_READ_LENGTH
from agents.local.words import is_chinese, terms
from domain.completion import CompletionReply, CompletionRequest, Usage
from domain.diagnosis import Case
from domain.exam import Criterion, Question

_SHOWN_WORDS = 6


class LocalModel:
    """Answers completion requests by deterministic arithmetic; the student's text is only ever compared."""

    async def complete(self, request: CompletionRequest) -> CompletionReply:
        """The reply to the request, worked out beside the event loop, so that heartbeats go on."""
        return await asyncio.to_thread(answer_request, request)


def answer_request(request: CompletionRequest) -> CompletionReply:
    """The reply: the same for the same question and answer, or for the same batch of logs."""
    if request.case is not None:
        return diagnose(request.case, request.model)
    question = request.graded()
    marks = mark_answer(question, request.answer)
    entries = [
        {
            "criterion_id": criterion.id,
            "points": round(criterion.points * mark.share, 4),
            "reason": reason_for(criterion, mark, truncated=len(request.answer) > MAX_READ_LENGTH),
            "quote": mark.quote,
            "confidence": mark.confidence,
            "cannot_assess": False,
        }
        for criterion, mark in zip(question.criteria, marks, strict=True)
    ]
    text = json.dumps({"criteria": entries}, ensure_ascii=False)
    read = _question_tokens(question) + _count([request.answer[:MAX_READ_LENGTH]])
    usage = Usage(tokens_in=read, tokens_out=_count([text]))
    return CompletionReply(text=text, usage=usage, model=request.model, advisory=True)


def diagnose(case: Case, model: str) -> CompletionReply:
    """The reply about a batch of logs, by rules."""
    text = json.dumps(answer_case(case), ensure_ascii=False)
    anomalies = case.summary.anomalies
    read = [line.text for each in anomalies for line in each.quotes] + [each.title for each in anomalies]
    return CompletionReply(
        text, Usage(tokens_in=_count(read), tokens_out=_count([text])), model, advisory=True
    )


def reason_for(criterion: Criterion, mark: Mark, *, truncated: bool) -> str:
    """Why the criterion earned what it earned, for the student, in the rubric's language."""
    phrases = _CHINESE if is_chinese(criterion.description) else _ENGLISH
    verdict = "all" if mark.share == 1 else "part" if mark.share else "none"
    sentences = [phrases[verdict].format(description=criterion.description)]
    if mark.found and mark.share:
        sentences.append(phrases["found"].format(words=_list(mark.found)))
    if mark.missed and mark.share < 1:
        sentences.append(phrases["missed"].format(words=_list(mark.missed)))
    if mark.turned:
        sentences.append(phrases["turned"])
    if mark.examples:
        sentences.append(phrases["examples"].format(count=mark.examples))
    if truncated:
        sentences.append(phrases["truncated"].format(limit=MAX_READ_LENGTH))
    return " ".join(sentences)


_ENGLISH: dict[str, str] = {
    "all": "Your answer covers this point.",
    "part": "Your answer covers this point in part.",
    "none": "This point was not found in your answer: {description}",
    "found": "Found: {words}.",
    "missed": "Not found: {words}.",
    "turned": "It may say the opposite of what was expected.",
    "examples": "Compared with {count} answers that a teacher has marked.",
    "truncated": "Only the first {limit:,} characters were read.",
}
_CHINESE: dict[str, str] = {
    "all": "你的答案说明了这一点。",
    "part": "你的答案只说明了这一点的一部分。",
    "none": "你的答案中没有找到这一点：{description}",
    "found": "找到：{words}。",
    "missed": "缺少：{words}。",
    "turned": "其中可能有与要求相反的说法。",
    "examples": "已与教师评过的 {count} 份答案比较。",
    "truncated": "只读取了前 {limit:,} 个字符。",
}


def _list(shown: Sequence[str]) -> str:
    return ", ".join(shown[:_SHOWN_WORDS])


# the same for every answer of a batch
@lru_cache(maxsize=200)
def _question_tokens(question: Question) -> int:
    """The tokens of everything that is read but the answer."""
    rubric = [criterion.description for criterion in question.criteria]
    examples = [example.answer for example in question.examples]
    return _count([question.prompt, question.reference, *rubric, *examples])


def _count(texts: Sequence[str]) -> int:
    return sum(len(terms(text)) for text in texts)
