"""Small gathered batches, the lines behind them, and runs of the diagnosis agent on scripted replies."""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from agents.diagnosis.session import DiagnosisSession
from agents.diagnosis.state import Limits
from agents.local.model import LocalModel
from domain.batch import AgentState
from domain.completion import CompletionReply, CompletionRequest, FinishReason, OnChunk, Payer, Usage
from domain.diagnosis import (
    Anomaly,
    BatchSummary,
    Change,
    DiagnosisOutcome,
    DiagnosisRun,
    FileSummary,
    MergedTemplate,
    VehicleSummary,
)
from domain.errors import NotFound
from domain.external_events import Outside
from domain.gateway import Caller, OnLimits
from domain.logs import Level, LogFile, LogLine, Quote

SECRET = b"the tenant's own secret, 32 bytes"
MORNING = datetime(2026, 1, 2, 8, 0, tzinfo=UTC)


@dataclass
class Logs:
    """Logs in memory, the port `LogLines`: `file id -> lines`; vehicles by file."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    vehicles: dict[str, str] = field(default_factory=dict)

    def files(self) -> list[LogFile]:
        return [
            LogFile(each, f"{each}.log", f"o/{each}", 100, vehicle_id=self.vehicles.get(each, ""))
            for each in self.texts
        ]

    def lines(self, log: LogFile) -> list[LogLine]:
        if log.file_id not in self.texts:
            raise NotFound(f"no {log.file_id}")
        return [
            LogLine(number, text, text, MORNING + timedelta(seconds=number))
            for number, text in enumerate(self.texts[log.file_id], 1)
        ]

    async def search(
        self, log: LogFile, terms: Sequence[str], *, first: int = 1, limit: int = 20
    ) -> list[LogLine]:
        wanted = [each.lower() for each in terms]
        having = [each for each in self.lines(log) if any(term in each.text.lower() for term in wanted)]
        return [each for each in having if each.number >= first][:limit]

    async def around(self, log: LogFile, line: int, *, member: str = "", reach: int = 5) -> list[LogLine]:
        return [each for each in self.lines(log) if abs(each.number - line) <= reach and not member]

    async def between(self, log: LogFile, since: datetime, until: datetime, *, limit: int) -> list[LogLine]:
        return [each for each in self.lines(log) if each.at and since <= each.at <= until][:limit]

    async def read(self, log: LogFile) -> AsyncIterator[LogLine]:
        for each in self.lines(log):
            yield each


def gathered(
    seen: Mapping[str, Sequence[str]], *, common: Sequence[str] = (), **changes: Any
) -> tuple[BatchSummary, Logs]:
    """A batch of one log a vehicle: each of its lines is an anomaly, the common ones are ordinary templates.

    Equal lines of several vehicles are one anomaly, as a template is; ids in a line are set off by `#`.
    """
    logs = Logs()
    anomalies: dict[str, Anomaly] = {}
    codes: dict[str, list[str]] = {}
    for number, (vehicle, lines) in enumerate(seen.items(), 1):
        file_id = f"file-{number}"
        logs.texts[file_id] = [*common, *lines]
        logs.vehicles[file_id] = vehicle if not vehicle.startswith("-") else ""
        for place, line in enumerate(lines, len(common) + 1):
            quote = Quote(place, line, file_id, at=(MORNING + timedelta(seconds=place)).isoformat())
            anomaly = _anomaly(anomalies, line, logs.vehicles[file_id], file_id, quote)
            anomalies[anomaly.title] = anomaly
            codes.setdefault(vehicle, []).append(anomaly.code)
    summary = BatchSummary(
        batch_id="batch-1",
        generation=1,
        files=len(seen),
        lines=sum(map(len, logs.texts.values())),
        parsed_lines=sum(map(len, logs.texts.values())),
        expanded_bytes=1,
        anomalies=tuple(anomalies.values()),
        anomaly_count=len(anomalies),
        templates=tuple(
            MergedTemplate(f"c{number}", text, 1, len(seen), by_vehicle=dict.fromkeys(seen, 1))
            for number, text in enumerate(common)
        ),
        vehicles=tuple(
            VehicleSummary(vehicle, "", 1, 10, anomaly_codes=tuple(codes.get(vehicle, ())))
            for vehicle in seen
            if not vehicle.startswith("-")
        ),
        logs=tuple(
            FileSummary(each.file_id, each.name, each.vehicle_id, "text", 10, 1.0, 3) for each in logs.files()
        ),
        signature="5" * 64,
    )
    return replace(summary, **changes), logs


def _anomaly(known: Mapping[str, Anomaly], line: str, vehicle: str, file_id: str, quote: Quote) -> Anomaly:
    title = line.split("#")[0]
    before = known.get(title) or Anomaly(
        f"T-{len(known) + 1}", Change.NEW, title, 1.0 / (len(known) + 1), 0, Level.ERROR
    )
    return replace(
        before,
        count=before.count + 1,
        files=before.files + 1,
        file_ids=(*before.file_ids, file_id),
        vehicles=(*before.vehicles, *([vehicle] if vehicle else [])),
        quotes=(*before.quotes, quote),
    )


#: a reply by purpose and call number, such as `conclude/1`: text, an object, or what makes one of the request
Reply = str | Mapping[str, Any] | Callable[[CompletionRequest], Mapping[str, Any]]


@dataclass
class ScriptedReplies:
    """A gateway, the port `Completions`, that answers by a script and journals by key as the real one."""

    replies: Mapping[str, Reply] = field(default_factory=dict)
    requests: list[CompletionRequest] = field(default_factory=list)
    journal: dict[str, CompletionReply] = field(default_factory=dict)
    #: dies before it answers this key
    dies_at: str = ""
    streams: bool = False
    upstream_calls: int = 0

    async def complete(
        self,
        request: CompletionRequest,
        *,
        caller: Caller | None = None,
        on_chunk: OnChunk | None = None,
        on_limits: OnLimits | None = None,
    ) -> CompletionReply:
        self.requests.append(request)
        if request.key.endswith(self.dies_at) and self.dies_at:
            raise ConnectionAbortedError(request.key)
        if request.key not in self.journal:
            self.upstream_calls += 1
            self.journal[request.key] = self._reply(request)
            if self.streams and on_chunk is not None:
                await _streamed(self.journal[request.key].text, on_chunk)
        return self.journal[request.key]

    def _reply(self, request: CompletionRequest) -> CompletionReply:
        assert request.case is not None
        purpose = request.case.purpose.value
        reply = self.replies.get(f"{purpose}/{request.call_number}", DEFAULTS[purpose])
        said = reply(request) if callable(reply) else reply
        text = said if isinstance(said, str) else json.dumps(said)
        words = sum(len(each.content.split()) for each in request.messages)
        reason = FinishReason.LENGTH if text.endswith("…") else FinishReason.STOP
        usage = Usage(words, len(text.split()))
        return CompletionReply(text, usage, request.model, finish_reason=reason, cost_nanodollars=7)


async def _streamed(text: str, on_chunk: OnChunk) -> None:
    for index in range(0, len(text), 5):
        await on_chunk([{"index": 0, "delta": {"content": text[index : index + 5]}}])


@dataclass
class LocalGateway:
    """A gateway that passes everything to the embedded model."""

    requests: list[CompletionRequest] = field(default_factory=list)

    async def complete(
        self,
        request: CompletionRequest,
        *,
        caller: Caller | None = None,
        on_chunk: OnChunk | None = None,
        on_limits: OnLimits | None = None,
    ) -> CompletionReply:
        self.requests.append(request)
        return await LocalModel().complete(request)


def look(tool: str = "grep", **fields: Any) -> dict[str, Any]:
    empty = {"file": "F1", "member": "", "terms": [], "line": 1, "since": "", "until": ""}
    return {"tool": tool, **empty, **fields}


def claim(cause: str, *quotes: tuple[str, int, str], **fields: Any) -> dict[str, Any]:
    """A cause as a model states it; its quotes are file, line and text."""
    evidence = [{"file": file, "member": "", "line": line, "text": text} for file, line, text in quotes]
    stated = {
        "cause": cause,
        "title": f"It is {cause}",
        "evidence": evidence,
        "explanation": "It went wrong. Then it stopped.",
        "anomaly_codes": ["T-1"],
        "vehicles": [],
        "hazard": "loss_of_function",
        "confidence": 0.8,
        "recommendations": ["Mend it."],
    }
    return stated | fields


def conclusion(*claims: Mapping[str, Any], verdict: str = "root_cause") -> dict[str, Any]:
    return {"findings": list(claims), "verdict": verdict, "summary": "The model has found it."}


DEFAULTS: Mapping[str, Reply] = {
    "survey": {"notes": []},
    "investigate": {"thought": "", "look": []},
    "conclude": conclusion(verdict="insufficient_evidence"),
}


class FixedClock:
    """A clock that stands still."""

    def now(self) -> datetime:
        return MORNING


@dataclass
class Bench:
    """One thread's saver, a batch and a model; what a run told."""

    summary: BatchSummary
    logs: Logs
    models: Any = field(default_factory=ScriptedReplies)
    limits: Limits = field(default_factory=Limits)
    model: str = "openai:gpt"
    # strict: only what LANGGRAPH_STRICT_MSGPACK=true lets back in
    saver: InMemorySaver = field(
        default_factory=lambda: InMemorySaver(serde=JsonPlusSerializer(allowed_msgpack_modules=None))
    )
    states: list[AgentState] = field(default_factory=list)
    restarts: list[str] = field(default_factory=list)
    deltas: list[str] = field(default_factory=list)
    outside: Outside | None = None

    @property
    def run(self) -> DiagnosisRun:
        return DiagnosisRun(
            thread_id="thread-1",
            epoch=1,
            batch_id=self.summary.batch_id,
            generation=1,
            model=self.model,
            summary=self.summary,
            logs=self.logs.files(),
            payer=Payer("tenant-1", self.summary.batch_id),
            secret=SECRET,
        )

    @property
    def session(self) -> DiagnosisSession:
        return DiagnosisSession(
            models=self.models,
            lines=self.logs,
            open_saver=lambda epoch: self.saver,
            clock=FixedClock(),
            limits=self.limits,
            outside=self.outside,
        )

    async def diagnose(self, *, draining: Callable[[], bool] = lambda: False) -> DiagnosisOutcome:
        return await self.session.diagnose(
            self.run,
            on_state=self.states.append,
            on_restart=self.restarts.append,
            on_delta=self.deltas.append,
            draining=draining,
        )

    def purposes(self) -> list[str]:
        """The calls that were made, by purpose."""
        return [each.case.purpose.value for each in self.models.requests if each.case is not None]

    def prompt(self, index: int = -1) -> str:
        return "\n".join(each.content for each in self.models.requests[index].messages)
