"""Logs for the plant: small but real workers of parsing and of diagnoses, which can be held and asked.

`LineParser` serves the contract of the queue as a foreign worker would, `PlainDiagnoser` proposes what the
summary says; both are what they are named, and no stand-ins that answer from a list.
"""

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import WorkflowHandle
from temporalio.worker import Worker

from activities.diagnose import DiagnoseInput, DiagnoseResult
from activities.failures import FailureInterceptor
from activities.parse import ParseInput, ParseResult
from db.postgres.batches import PostgresBatches
from db.postgres.diagnoses import PostgresDiagnoses, PostgresDiagnosisThreads
from db.postgres.logs import PostgresSummaries
from domain.batch import AgentState, Batch, BatchKind, BatchOpening, StoredFile
from domain.diagnosis import Diagnosis, DiagnosisStart, RiskLevel, Verdict
from domain.documents import encode
from domain.errors import AssayError, EpochSuperseded, UnreadableLog
from domain.identity import diagnosis_workflow_id, file_workflow_id
from domain.logs import Level, LogFormat, ParsedLog, Quote, TemplateCount
from domain.states import BatchState
from runtime.resources import Resources
from runtime.server import services
from tests.builders import add_file
from tests.db.stage import until
from tests.workflows.plant import handle_of
from workflows.diagnosis import DiagnosisWorkflow, LogWorkflow

HEALTHY = b"".join(b"2026-01-02T03:04:%02dZ INFO boot step %d done\n" % (n, n) for n in range(20))
BROKEN = HEALTHY + b"2026-01-02T03:05:00Z ERROR slot B did not verify: code 7\n" * 5
UNREADABLE = b"\0\1\2\3"


async def open_logs(
    resources: Resources, files: Mapping[str, bytes], *, complete: bool = True, **opening: Any
) -> Batch:
    """A diagnosis batch with these logs, through the real stores; completed but not started."""
    made = services(resources)
    await made.keys.ensure("local", "Local", "test", "assay_builders_key")  # type: ignore[attr-defined]
    wanted = BatchOpening(BatchKind.DIAGNOSIS, **opening)
    batch = await made.batches.open("local", wanted, "0" * 32, made.new_id())
    for name, content in files.items():
        await add_file(resources, batch.id, name, content)
    return await made.batches.complete("local", batch.id) if complete else batch


@dataclass
class Gate:
    """Holds those whose names are told, or everyone, for as long as they are let; heartbeats meanwhile."""

    everyone: bool = False
    names: set[str] = field(default_factory=set)
    held: Counter[str] = field(default_factory=Counter)

    async def enter(self, name: str) -> None:
        """Come in."""
        self.held[name] += 1
        try:
            while self.everyone or name in self.names:
                activity.heartbeat()
                await asyncio.sleep(0.05)
        finally:
            self.held[name] -= 1

    async def is_holding(self, name: str, *, within_seconds: float = 30) -> None:
        """Wait until it is held."""
        try:
            async with asyncio.timeout(within_seconds):
                while not self.held[name]:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            pytest.fail(f"{name} is not held")


@dataclass
class LineParser:
    """Parses plain text: a template a line, its numbers masked."""

    resources: Resources
    gate: Gate = field(default_factory=Gate)

    @activity.defn
    async def parse_log(self, log: ParseInput) -> ParseResult:
        """Read the object, write the document."""
        await self.gate.enter(log.name)
        content = await self.resources.objects.read(log.object_key)
        if b"\0" in content:
            raise UnreadableLog(f"{log.name}: no text.")
        document = encode(parsed(content.decode().splitlines(), len(content)))
        await self.resources.objects.write(log.parsed_key, _once(document))
        lines = content.count(b"\n")
        return ParseResult(log.parsed_key, hashlib.sha256(document).hexdigest(), lines, lines, LogFormat.TEXT)


def parsed(lines: list[str], size_bytes: int) -> ParsedLog:
    """What the lines come to."""
    found: dict[str, list[tuple[int, str]]] = {}
    for number, line in enumerate(lines, 1):
        found.setdefault(re.sub(r"\d+", "<*>", line.partition(" ")[2]), []).append((number, line))
    templates = tuple(
        TemplateCount(
            template_id=hashlib.sha256(text.encode()).hexdigest()[:12],
            text=text,
            count=len(those),
            level=Level.ERROR if text.startswith("ERROR") else Level.INFO,
            examples=tuple(Quote(number, line) for number, line in those[:3]),
        )
        for text, those in found.items()
    )
    levels = Counter({each.level or Level.INFO: 0 for each in templates})
    for each in templates:
        levels[each.level or Level.INFO] += each.count
    times = [line.partition(" ")[0] for line in lines]
    return ParsedLog(
        format=LogFormat.TEXT,
        size_bytes=size_bytes,
        expanded_bytes=size_bytes,
        lines=len(lines),
        parsed_lines=len(lines),
        first_at=min(times).replace("Z", "+00:00"),
        last_at=max(times).replace("Z", "+00:00"),
        levels=dict(levels),
        templates=templates,
        parser="lines/1",
    )


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


@dataclass
class PlainDiagnoser:
    """Says of a batch what its summary says, after as many refusals as it is told; held by batch id."""

    resources: Resources
    gate: Gate = field(default_factory=Gate)
    #: by batch id: raised, one a call, before anything is proposed
    refusals: dict[str, list[AssayError]] = field(default_factory=dict)
    #: by batch id: the thread and the epoch of each attempt
    seen: dict[str, list[tuple[str, int]]] = field(default_factory=dict)

    @activity.defn
    async def diagnose_batch(self, batch: DiagnoseInput) -> DiagnoseResult:
        """Begin the epoch, read the summary, propose."""
        info = activity.info()
        thread_id = info.workflow_run_id or ""
        start = DiagnosisStart(
            batch_id=batch.batch_id,
            generation=batch.generation,
            thread_id=thread_id,
            workflow_id=info.workflow_id or "",
            first_execution_run_id=batch.first_execution_run_id,
            scheduled_at=info.current_attempt_scheduled_time,
        )
        epoch = await PostgresDiagnosisThreads(self.resources.postgres).begin(start)
        if epoch is None:
            raise EpochSuperseded("Another attempt has the batch.")
        self.seen.setdefault(batch.batch_id, []).append((thread_id, epoch))
        await self.gate.enter(batch.batch_id)
        if refusals := self.refusals.get(batch.batch_id):
            raise refusals.pop(0)
        summary = await PostgresSummaries(self.resources.postgres).read(batch.batch_id, batch.generation)
        grave = summary.levels.get(Level.ERROR, 0)
        diagnosis = Diagnosis(
            verdict=Verdict.INSUFFICIENT_EVIDENCE if grave else Verdict.UNREMARKABLE,
            summary=f"{grave} errors in {summary.lines} lines of {summary.files} logs.",
            risk_level=RiskLevel.LOW if grave else RiskLevel.NONE,
            risk_rule="errors, or none",
            model="plain",
            rule_based=True,
        )
        store = PostgresDiagnoses(self.resources.postgres)
        await store.propose(batch.batch_id, batch.generation, thread_id, epoch, diagnosis)
        state = AgentState(thread_id, stage="done", percentage=100.0)
        return DiagnoseResult(state, verdict=diagnosis.verdict)


def parsing(resources: Resources, parser: LineParser | None = None) -> Worker:
    """A worker of the queue `parsing`."""
    parser = parser or LineParser(resources)
    return Worker(
        resources.temporal,
        task_queue=resources.settings.temporal.parsing_queue,
        activities=[parser.parse_log],
        interceptors=[FailureInterceptor()],
    )


def diagnosing(resources: Resources, diagnoser: PlainDiagnoser | None = None) -> Worker:
    """A worker of the queue `cognition` that diagnoses alone."""
    diagnoser = diagnoser or PlainDiagnoser(resources)
    return Worker(
        resources.temporal,
        task_queue=resources.settings.temporal.cognition_queue,
        activities=[diagnoser.diagnose_batch],
        interceptors=[FailureInterceptor()],
    )


def log_of(resources: Resources, file: StoredFile) -> WorkflowHandle[LogWorkflow, Any]:
    """The log's workflow."""
    return resources.temporal.get_workflow_handle_for(
        LogWorkflow.run, file_workflow_id(file.batch_id, file.id, file.generation)
    )


def diagnosis_of(resources: Resources, batch: Batch) -> WorkflowHandle[DiagnosisWorkflow, Any]:
    """The workflow of the batch's diagnosis."""
    return resources.temporal.get_workflow_handle_for(
        DiagnosisWorkflow.run, diagnosis_workflow_id(batch.id, batch.generation)
    )


async def is_in(resources: Resources, batch: Batch, state: BatchState) -> None:
    """Wait until the batch, and its workflow with it, is in that state."""

    async def there() -> bool:
        stored = await PostgresBatches(resources.postgres).read("local", batch.id)
        return stored.state is state and await handle_of(resources, batch).query("state") == state

    await until(there, within_seconds=30)
