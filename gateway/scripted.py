"""A model that answers by a script: for tests and benchmarks, never for marks."""

import asyncio
import json
import os
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self

import yaml

from domain.completion import Chat, CompletionReply, CompletionRequest, FinishReason, OnChunk, Usage
from domain.diagnosis import Anomaly, Case, Purpose
from domain.errors import InvalidInput, ModelRefused, ModelUnavailable
from gateway.replies import text_of, to_json

#: what share of a criterion's points a reply policy gives
POLICIES: Mapping[str, float] = {"full": 1.0, "half": 0.5, "zero": 0.0}
#: `in_doubt`: unavailable after half of the reply, so that nobody knows what is charged
FAILURES = ("model_unavailable", "in_doubt", "model_refused", "bad_quote", "invalid_json")
#: stands in no answer, and no change of spaces or letter case brings it there
BAD_QUOTE = "⟦these words stand in no answer⟧"
MAX_QUOTE_LENGTH = 300

_WORD = re.compile(r"\s*\S+\s*")
_FIRST_SENTENCE = re.compile(r"\S.*?(?:[.!?](?=\s)|[。！？]|$)", re.MULTILINE)


@dataclass(frozen=True)
class Rule:
    """What to do with calls whose key or question id matches; the first rule that matches is taken.

    `reply` is a policy's name or the literal text; by a policy's name, a chat is answered with what its user
    said last, and a batch of logs with its first anomaly as the cause, or with none by `zero`. `times` limits
    the rule to its first matching calls in this process; `hang_seconds` come before everything else.
    """

    match: str = "*"
    reply: str | None = None
    fail: str | None = None
    hang_seconds: float = 0.0
    times: int | None = None

    def __post_init__(self) -> None:
        if self.fail is not None and self.fail not in FAILURES:
            raise InvalidInput(f"fail: {self.fail!r} is not one of {', '.join(FAILURES)}.", field="fail")

    def matches(self, request: CompletionRequest) -> bool:
        """Whether the rule speaks of this call."""
        if fnmatchcase(request.key, self.match):
            return True
        return request.question is not None and fnmatchcase(request.question.id, self.match)


@dataclass(frozen=True)
class Script:
    """How a scripted model behaves."""

    latency_seconds: float = 0.0
    #: between two words of a streamed reply
    word_seconds: float = 0.0
    reply: str = "full"
    confidence: float = 0.9
    rules: tuple[Rule, ...] = ()
    calls_log: str | None = None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The script in a YAML or JSON file; `InvalidInput` names a field that is not known."""
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        content = _known({} if document is None else document, cls, str(path))
        rules = tuple(
            Rule(**_known(each, Rule, f"{path}: rules[{index}]"))
            for index, each in enumerate(content.pop("rules", ()))
        )
        return cls(rules=rules, **content)


def _known(document: object, type_: type[Script] | type[Rule], where: str) -> dict[str, Any]:
    """The mapping, once all its fields are the type's."""
    if not isinstance(document, Mapping):
        raise InvalidInput(f"{where}: expected a mapping of fields.", field=where)
    names = [each.name for each in fields(type_)]
    for name in document:
        if name not in names:
            raise InvalidInput(
                f"{where}: unknown field {name!r}; known: {', '.join(names)}.", field=str(name)
            )
    return dict(document)


@dataclass
class ScriptedModel:
    """An upstream that replies as its script says and counts its calls, across processes if asked to."""

    script: Script = field(default_factory=Script)
    #: calls by key: those that began, and those whose reply went back
    begun: Counter[str] = field(default_factory=Counter)
    returned: Counter[str] = field(default_factory=Counter)
    _uses: Counter[int] = field(default_factory=Counter)

    async def complete(self, request: CompletionRequest) -> CompletionReply:
        """The scripted reply; raises `ModelUnavailable` or `ModelRefused` where the script says so."""
        rule = await self._begun(request)
        if rule.fail == "in_doubt":
            raise _broken_off(request)
        self._note(self.returned, "returned", request.key)
        return self._reply(rule, request)

    async def stream(self, request: CompletionRequest, on_chunk: OnChunk) -> CompletionReply:
        """As `complete`, told word by word."""
        rule = await self._begun(request)
        reply = self._reply(rule, request)
        words = _WORD.findall(reply.text)
        for word in words[: len(words) // 2] if rule.fail == "in_doubt" else words:
            await on_chunk([{"index": 0, "delta": {"role": "assistant", "content": word}}])
            await asyncio.sleep(self.script.word_seconds)
        if rule.fail == "in_doubt":
            raise _broken_off(request)
        await on_chunk([{"index": 0, "delta": {}, "finish_reason": reply.finish_reason.value}])
        self._note(self.returned, "returned", request.key)
        return reply

    async def _begun(self, request: CompletionRequest) -> Rule:
        self._note(self.begun, "begun", request.key)
        rule = self._rule_for(request)
        await asyncio.sleep(self.script.latency_seconds + rule.hang_seconds)
        if rule.fail == "model_unavailable":
            raise ModelUnavailable(f"{request.key}: unavailable, as the script says.")
        if rule.fail == "model_refused":
            raise ModelRefused(f"{request.key}: refused, as the script says.")
        return rule

    def _reply(self, rule: Rule, request: CompletionRequest) -> CompletionReply:
        text, reason = self._text(rule, request), FinishReason.STOP
        if request.chat is not None and len(words := text.split()) > request.max_tokens:
            text, reason = " ".join(words[: request.max_tokens]), FinishReason.LENGTH
        return CompletionReply(
            text=text,
            usage=Usage(tokens_in=len(_input(request).split()), tokens_out=len(text.split())),
            model=request.model,
            finish_reason=reason,
            choices=to_json([_choice(text, reason)]) if request.chat is not None else "",
        )

    def _rule_for(self, request: CompletionRequest) -> Rule:
        for index, rule in enumerate(self.script.rules):
            if rule.matches(request) and (rule.times is None or self._uses[index] < rule.times):
                self._uses[index] += 1
                return rule
        return Rule()

    def _text(self, rule: Rule, request: CompletionRequest) -> str:
        if rule.fail == "invalid_json":
            return '{"criteria": ['
        reply = rule.reply if rule.reply is not None else self.script.reply
        if reply not in POLICIES:
            return reply
        if request.chat is not None:
            return _said_last(request.chat)
        if request.case is not None:
            return _case_reply(request.case, reply, bad_quote=rule.fail == "bad_quote")
        quote = BAD_QUOTE if rule.fail == "bad_quote" else first_sentence(request.answer)
        return _policy_reply(request, POLICIES[reply], quote, self.script.confidence)

    def _note(self, counter: Counter[str], event: str, key: str) -> None:
        counter[key] += 1
        if self.script.calls_log is not None:
            line = json.dumps({"key": key, "event": event, "pid": os.getpid(), "time": time.time()})
            append_line(self.script.calls_log, line)


def _broken_off(request: CompletionRequest) -> ModelUnavailable:
    return ModelUnavailable(f"{request.key}: broke off, as the script says.", in_doubt=True)


def _input(request: CompletionRequest) -> str:
    """What the model reads, as far as it is counted."""
    if request.case is not None:
        return " ".join(each.content for each in request.messages)
    return request.answer if request.chat is None else " ".join(map(_text_of, request.chat.messages))


def _said_last(chat: Chat) -> str:
    said = (_text_of(each) for each in reversed(chat.messages) if each.get("role") == "user")
    return next(said, "")


def _text_of(message: Mapping[str, Any]) -> str:
    return text_of([{"message": message}])


def _choice(text: str, reason: FinishReason) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": 0, "message": message, "logprobs": None, "finish_reason": reason.value}


def first_sentence(answer: str) -> str:
    """The answer's first sentence, verbatim, at most as long as a quote may be."""
    match = _FIRST_SENTENCE.search(answer[:MAX_QUOTE_LENGTH])
    return match.group(0).strip() if match else ""


def append_line(path: str, line: str) -> None:
    """Append the line in one write, whole even when its process is killed or others write too."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def _policy_reply(request: CompletionRequest, share: float, quote: str, confidence: float) -> str:
    criteria = [
        {
            "criterion_id": criterion.id,
            "points": criterion.points * share,
            "reason": f"The script gives {share:.0%}.",
            "quote": quote,
            "confidence": confidence,
            "cannot_assess": False,
        }
        for criterion in request.graded().criteria
    ]
    return json.dumps({"criteria": criteria}, ensure_ascii=False)


def _case_reply(case: Case, policy: str, *, bad_quote: bool) -> str:
    if case.purpose is Purpose.SURVEY:
        return json.dumps({"notes": []})
    if case.purpose is Purpose.INVESTIGATE:
        return json.dumps({"thought": "The script has seen enough.", "look": []})
    quoted = [each for each in case.summary.anomalies if each.quotes and policy != "zero"]
    return json.dumps(
        {
            "findings": [_claim(each, bad_quote=bad_quote) for each in quoted[:1]],
            "verdict": "root_cause" if quoted else "insufficient_evidence",
            "summary": "The script has spoken.",
        }
    )


def _claim(anomaly: Anomaly, *, bad_quote: bool) -> dict[str, Any]:
    quote = anomaly.quotes[0]
    text = BAD_QUOTE if bad_quote else quote.text
    return {
        "cause": "scripted",
        "title": "The script names the first anomaly",
        "evidence": [{"file": quote.file_id, "member": quote.member, "line": quote.line, "text": text}],
        "explanation": "The script says so.",
        "anomaly_codes": [anomaly.code],
        "vehicles": list(anomaly.vehicles),
        "hazard": "degraded",
        "confidence": 0.5,
        "recommendations": [],
    }
