"""The embedded model: marks by shared words, no key and no network; advisory, never a mark's only basis."""

import asyncio
import json
from collections.abc import Sequence

from agents.local.marking import Mark, mark_answer
from agents.local.sentences import MAX_READ_LENGTH
from agents.local.words import is_chinese, terms
from domain.completion import CompletionReply, CompletionRequest, Usage
from domain.exam import Criterion, Question

_SHOWN_WORDS = 6


class LocalModel:
    """Answers completion requests by deterministic rules; the student's text is only ever compared."""

    async def complete(self, request: CompletionRequest) -> CompletionReply:
        """The reply to the request, worked out beside the event loop, so that heartbeats go on."""
        return await asyncio.to_thread(answer_request, request)


def answer_request(request: CompletionRequest) -> CompletionReply:
    """The reply: the same for the same question and answer."""
    question = request.question
    marks = mark_answer(question, request.answer)
    entries = [
        {
            "criterion_id": criterion.id,
            "points": criterion.points * mark.share,
            "reason": reason_for(criterion, mark, truncated=len(request.answer) > MAX_READ_LENGTH),
            "quote": mark.quote,
            "confidence": mark.confidence,
            "cannot_assess": False,
        }
        for criterion, mark in zip(question.criteria, marks, strict=True)
    ]
    text = json.dumps({"criteria": entries}, ensure_ascii=False)
    usage = Usage(tokens_in=_count(_read(question, request.answer)), tokens_out=_count([text]))
    return CompletionReply(text=text, usage=usage, model=request.model, advisory=True)


def reason_for(criterion: Criterion, mark: Mark, *, truncated: bool) -> str:
    """Why the criterion earned what it earned, for the student, in the rubric's language."""
    phrases = _CHINESE if is_chinese(criterion.description) else _ENGLISH
    sentences = [phrases[mark.share].format(description=criterion.description)]
    if mark.found and mark.share:
        sentences.append(phrases["found"].format(words=_list(mark.found)))
    if mark.missed and mark.share < 1:
        sentences.append(phrases["missed"].format(words=_list(mark.missed)))
    if truncated:
        sentences.append(phrases["truncated"].format(limit=MAX_READ_LENGTH))
    return " ".join(sentences)


_ENGLISH: dict[float | str, str] = {
    1.0: "Your answer covers this point.",
    0.5: "Your answer covers this point in part.",
    0.0: "This point was not found in your answer: {description}",
    "found": "Found: {words}.",
    "missed": "Not found: {words}.",
    "truncated": "Only the first {limit:,} characters were read.",
}
_CHINESE: dict[float | str, str] = {
    1.0: "你的答案说明了这一点。",
    0.5: "你的答案只说明了这一点的一部分。",
    0.0: "你的答案中没有找到这一点：{description}",
    "found": "找到：{words}。",
    "missed": "缺少：{words}。",
    "truncated": "只读取了前 {limit:,} 个字符。",
}


def _list(shown: Sequence[str]) -> str:
    return ", ".join(shown[:_SHOWN_WORDS])


def _read(question: Question, answer: str) -> list[str]:
    """Everything that the model reads for one reply."""
    rubric = [criterion.description for criterion in question.criteria]
    return [question.prompt, question.reference, *rubric, answer[:MAX_READ_LENGTH]]


def _count(texts: Sequence[str]) -> int:
    return sum(len(terms(text)) for text in texts)
