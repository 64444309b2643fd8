"""Logs on their way through a batch: parsed ones recorded, gathered, and diagnosed officially (B6, B7).

Every step and every compensation may run any number of times.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

from temporalio import activity

from activities.batches import BatchRef
from activities.persist import refused
from domain.batch import Counts
from domain.diagnosis import BatchSummary, DiagnosisRecords, Summaries
from domain.documents import decode, encode
from domain.errors import DocumentInvalid, NotFound, RedisUnavailable, Unavailable
from domain.gathering import Gathering
from domain.identity import parsed_log_key, recorded_log_key, summary_key
from domain.logs import KeptLog, LogFile, Logs, LogStart, ParsedLog, check_parsed_log
from domain.ports import Barrier, BatchRuns, Bell, Objects
from domain.states import FILE_MACHINE


@dataclass
class LogRef:
    """Which log, in which generation."""

    tenant_id: str
    batch_id: str
    file_id: str
    generation: int
    first_execution_run_id: str = ""
    trace_id: str = ""


@dataclass
class LogToParse:
    """Where a log's bytes are and its document goes; `ended` is set if it was in a final state before."""

    name: str
    object_key: str
    size_bytes: int
    parsed_key: str
    #: RFC 3339: when the log was handed in
    written_at: str
    ended: str | None = None


@dataclass
class RecordLogInput:
    """Whose document is to be recorded, and what its parser says of it."""

    tenant_id: str
    batch_id: str
    file_id: str
    generation: int
    parsed_sha256: str
    lines: int
    parsed_lines: int
    trace_id: str = ""


@dataclass
class DiagnosisRef:
    """Whose diagnosis, in which generation, by which thread; `code` and `reason` of a failure."""

    tenant_id: str
    batch_id: str
    generation: int
    thread_id: str = ""
    code: str = ""
    reason: str = ""
    trace_id: str = ""


@dataclass
class RecordDiagnosisResult:
    """What became official."""

    verdict: str
    risk_level: str
    findings: int
    rule_based: bool
    reused_from: str


@dataclass(frozen=True)
class LogActivities:
    """What is done to one log, and what they need."""

    logs: Logs
    objects: Objects
    barrier: Barrier
    bell: Bell

    @activity.defn
    async def begin_log(self, input: LogRef) -> LogToParse:
        """Mark the log running and say where its bytes are."""
        info = activity.info()
        log = await self.logs.begin(
            LogStart(
                file_id=input.file_id,
                generation=input.generation,
                workflow_id=info.workflow_id or "",
                run_id=info.workflow_run_id or "",
                first_execution_run_id=input.first_execution_run_id,
            )
        )
        return LogToParse(
            name=log.name,
            object_key=log.object_key,
            size_bytes=log.size_bytes,
            parsed_key=parsed_log_key(input.tenant_id, input.batch_id, input.file_id, input.generation),
            written_at=log.written_at,
            ended=log.state if log.state in FILE_MACHINE.final else None,
        )

    @activity.defn
    async def record_log(self, input: RecordLogInput) -> None:
        """Check what the parser wrote, keep it for good, and complete the file; its event goes with it."""
        place = (input.tenant_id, input.batch_id, input.file_id, input.generation)
        kept = KeptLog(recorded_log_key(*place, input.parsed_sha256), input.parsed_sha256)
        # kept already where this step is repeated
        for key in (parsed_log_key(*place), kept.parsed_key):
            content = await self._read(key)
            if content is not None and _sha256(content) == input.parsed_sha256:
                break
        else:
            raise DocumentInvalid(
                "The document of the parsed log is not there, or not the one whose SHA-256 was told.",
                field="parsed_sha256",
            )
        parsed = await asyncio.to_thread(decode, ParsedLog, content)
        check_parsed_log(parsed, lines=input.lines, parsed_lines=input.parsed_lines)
        if key != kept.parsed_key:
            # a parser that was thought dead writes where the living do: what counts is out of its reach
            await self.objects.rename(key, kept.parsed_key)
        await self.logs.record(input.file_id, input.generation, kept, parsed)
        with suppress(RedisUnavailable):  # Postgres counts, and the relay polls
            await self.barrier.arrive(input.batch_id, input.file_id)
            await self.bell.ring()

    async def _read(self, key: str) -> bytes | None:
        try:
            return await self.objects.read(key)
        except NotFound:
            return None


@dataclass(frozen=True)
class GatherActivities:
    """The gathering of a batch of logs, and what it needs."""

    runs: BatchRuns
    logs: Logs
    objects: Objects
    summaries: Summaries

    @activity.defn
    async def gather_logs(self, input: DiagnosisRef) -> Counts:
        """scattered → gathering → gathered, with the summary of all logs that were parsed."""
        async with _heartbeats():
            await self.runs.begin_gathering(input.batch_id)
            summary = await self._summary(input)
            content = await asyncio.to_thread(encode, summary)
            sha256 = _sha256(content)
            key = summary_key(input.tenant_id, input.batch_id, input.generation, sha256)
            await self.objects.write(key, _once(content))
            await self.summaries.write(summary, key, sha256)
            return await self.runs.gather(input.batch_id)

    async def _summary(self, input_: DiagnosisRef) -> BatchSummary:
        gathering = Gathering()
        await self._take_all(input_.batch_id, gathering.add)
        baseline = await self.summaries.baseline_of(input_.batch_id)
        if baseline is not None:
            await self._take_all(baseline.batch_id, gathering.add_baseline)
        return await asyncio.to_thread(gathering.summary, input_.batch_id, input_.generation, baseline)

    async def _take_all(self, batch_id: str, take: Callable[[LogFile, ParsedLog], None]) -> None:
        """One log after another, so that one is in memory; beside the event loop, as it takes CPU."""
        for log, sha256 in await self.logs.parsed(batch_id):
            content = await self.objects.read(log.parsed_key)
            await asyncio.to_thread(_take, take, log, content, sha256)

    @activity.defn
    async def begin_diagnosing(self, input: BatchRef) -> None:
        """gathered → diagnosing."""
        await self.runs.begin_diagnosing(input.batch_id)


@dataclass(frozen=True)
class DiagnosisRecordActivities:
    """The saga's steps that make a diagnosis official, each beside its opposite (G4.1)."""

    records: DiagnosisRecords
    bell: Bell

    @activity.defn
    async def record_diagnosis(self, input: DiagnosisRef) -> RecordDiagnosisResult:
        """The proposal is official, its event told; this step decides."""
        recorded = await self.records.record(input.batch_id, input.generation, input.thread_id)
        return RecordDiagnosisResult(**vars(recorded))

    @activity.defn
    async def retract_diagnosis(self, input: DiagnosisRef) -> None:
        """Undo `record_diagnosis`, and say so with an event."""
        await self.records.retract(input.batch_id, input.generation, input.reason)
        await self._ring_quietly()

    @activity.defn
    async def publish_diagnosis(self, input: DiagnosisRef) -> None:
        """Wake the relay, and complete the saga; its opposite is the bell that `retract_diagnosis` rings."""
        try:
            await self.bell.ring()
        except RedisUnavailable:
            pass  # the relay polls
        except Unavailable:
            raise
        except Exception as error:
            raise refused("publish_diagnosis", error) from error
        await self.records.publish(input.batch_id, input.generation)

    @activity.defn
    async def flag_diagnosis(self, input: DiagnosisRef) -> None:
        """The saga waits for a human, as a step could not be undone."""
        await self.records.flag_saga(input.batch_id, input.generation, input.reason)

    @activity.defn
    async def fail_diagnosis(self, input: DiagnosisRef) -> None:
        """The batch goes without a diagnosis; why is told."""
        await self.records.fail(input.batch_id, input.generation, input.code, input.reason)
        await self._ring_quietly()

    async def _ring_quietly(self) -> None:
        with suppress(RedisUnavailable):  # the relay polls
            await self.bell.ring()


def _take(take: Callable[[LogFile, ParsedLog], None], log: LogFile, content: bytes, sha256: str) -> None:
    if _sha256(content) != sha256:
        raise DocumentInvalid(f"The document of the parsed log {log.file_id} has been changed.")
    take(log, decode(ParsedLog, content))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


@asynccontextmanager
async def _heartbeats() -> AsyncIterator[None]:
    """Heartbeat four times in each heartbeat timeout for as long as the block."""
    timeout = activity.info().heartbeat_timeout or timedelta(seconds=10)

    async def beat() -> None:
        while True:
            activity.heartbeat()
            await asyncio.sleep(timeout.total_seconds() / 4)

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()
