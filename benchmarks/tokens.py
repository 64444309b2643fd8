"""Tokens that a diagnosis takes: the summary and a few looked-up lines, against all lines sent in segments.

`python -m benchmarks.tokens [--json] [--lines N]`. Both sides are counted by one estimate, that of the
agent's own budget (`agents.diagnosis.rendering.tokens_of`). The summary is what parsing and gathering make of
the very lines; the calls are those that the agent makes of a model that looks around twice, then concludes.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver

from activities.parsing.lines import StoredLogLines
from activities.parsing.parser import parse
from agents.diagnosis.rendering import tokens_of
from agents.diagnosis.session import DiagnosisSession
from agents.diagnosis.state import Limits
from db.objects.store import ObjectStoreFiles
from domain.batch import AgentState
from domain.completion import CompletionReply, CompletionRequest, OnChunk, Payer, Usage
from domain.diagnosis import Baseline, BatchSummary, DiagnosisOutcome, DiagnosisRun, Purpose
from domain.gateway import Caller, OnLimits
from domain.gathering import Gathering
from domain.logs import LogFile
from runtime.resources import SystemClock

VEHICLES = 12
LINES = 100_000
#: what a segment of raw lines would carry beside them, as a prompt does
FRAME_TOKENS = 700

_ORDINARY = (
    "INFO telemetry: speed={speed} km/h battery={charge} % temperature={temperature} C",
    "INFO can: frame 0x{frame:03x} received in {micros} us on bus {bus}",
    "DEBUG scheduler: task {task} took {micros} us",
    "INFO navigation: position {latitude:.5f},{longitude:.5f} satellites={satellites}",
    "INFO gateway: keep-alive to 10.0.{bus}.{task} answered in {millis} ms",
    "DEBUG cache: {frame} entries, {charge} % hits",
)
_TROUBLE: Mapping[int, tuple[str, ...]] = {
    1: ("ERROR ota: download of chunk {frame} failed: connection timed out after {millis} ms",),
    2: ("ERROR ota: package signature verification failed: certificate has expired",),
    3: (
        "ERROR power: brown-out detected while switching the slot, {charge} mV under the limit",
        "ERROR ota: slot B is not bootable, rolling back to slot A",
    ),
}


def lines_of(vehicle: int, count: int, *, healthy: bool) -> Iterator[str]:
    """The lines of one vehicle; three in four vehicles have one of three faults, in a line of two hundred."""
    chance = random.Random(f"{vehicle}/{healthy}")  # noqa: S311  # the same lines in every run
    at = datetime(2026, 1, 2, 8, tzinfo=UTC)
    trouble = () if healthy else _TROUBLE.get(vehicle % 4, ())
    for number in range(count):
        at += timedelta(milliseconds=chance.randint(1, 400))
        template = chance.choice(_ORDINARY)
        if trouble and number % 200 == 150:
            # what comes of a cause comes after it
            template = trouble[number // 200 % len(trouble)]
        yield f"{at.isoformat(timespec='milliseconds')} {template.format(**_values(chance))}"


def _values(chance: random.Random) -> dict[str, Any]:
    return {
        "speed": chance.randint(0, 180),
        "charge": chance.randint(5, 100),
        "temperature": chance.randint(-10, 60),
        "frame": chance.randint(0, 2_047),
        "micros": chance.randint(10, 9_000),
        "millis": chance.randint(1, 900),
        "bus": chance.randint(0, 3),
        "task": chance.randint(1, 200),
        "latitude": chance.uniform(47, 54),
        "longitude": chance.uniform(6, 15),
        "satellites": chance.randint(6, 14),
    }


@dataclass
class CountingModel:
    """A gateway, the port `Completions`, whose model looks around twice, concludes, and counts."""

    tokens_in: int = 0
    tokens_out: int = 0
    calls: int = 0

    async def complete(
        self,
        request: CompletionRequest,
        *,
        caller: Caller | None = None,
        on_chunk: OnChunk | None = None,
        on_limits: OnLimits | None = None,
    ) -> CompletionReply:
        """The scripted reply; what was sent counts with its schema."""
        assert request.case is not None
        text = json.dumps(self._reply(request))
        sent = "".join(each.content for each in request.messages) + json.dumps(dict(request.schema))
        usage = Usage(tokens_of(sent), tokens_of(text))
        self.tokens_in += usage.tokens_in
        self.tokens_out += usage.tokens_out
        self.calls += 1
        return CompletionReply(text, usage, request.model)

    def _reply(self, request: CompletionRequest) -> Mapping[str, Any]:
        assert request.case is not None
        summary = request.case.summary
        if request.case.purpose is Purpose.SURVEY:
            codes = [each.code for each in summary.anomalies]
            return {"notes": [{"anomaly_codes": codes, "note": "Seen."}]}
        if request.case.purpose is Purpose.INVESTIGATE:
            return {"thought": "", "look": _looks(summary, request.case.turn)}
        return {"findings": _claims(summary), "verdict": "root_cause", "summary": "Three causes."}


def _looks(summary: BatchSummary, turn: int) -> list[dict[str, Any]]:
    """In the first turn the lines around what was quoted, in the second the same words elsewhere."""
    if turn > 1:
        return []
    quoted = [each.quotes[0] for each in summary.anomalies[:6] if each.quotes]
    return [
        {
            "tool": "grep" if turn else "context",
            "file": each.file_id,
            "member": "",
            "terms": ["ERROR"] if turn else [],
            "line": each.line,
            "since": "",
            "until": "",
        }
        for each in quoted
    ]


def _claims(summary: BatchSummary) -> list[dict[str, Any]]:
    quoted = [each for each in summary.anomalies if each.quotes][:4]
    return [
        {
            "cause": "found",
            "title": each.title,
            "evidence": [
                {"file": quote.file_id, "member": quote.member, "line": quote.line, "text": quote.text}
                for quote in each.quotes
            ],
            "explanation": "What the line says has happened.",
            "anomaly_codes": [each.code],
            "vehicles": list(each.vehicles),
            "hazard": "loss_of_function",
            "confidence": 0.8,
            "recommendations": ["Look into it."],
        }
        for each in quoted
    ]


@dataclass
class Figures:
    """What the run has measured."""

    lines: int = 0
    raw_tokens: int = 0
    raw_segments: int = 0
    without_summary: int = 0
    with_summary: int = 0
    calls: int = 0
    anomalies: int = 0
    findings: int = 0
    factor: float = field(default=0.0)


async def measure(lines: int, folder: Path) -> Figures:
    """Parse, gather and diagnose, and count both ways."""
    objects = ObjectStoreFiles.at(folder.as_uri())
    gathering, logs, figures = Gathering(), [], Figures(lines=lines)
    for vehicle in range(VEHICLES):
        text = "\n".join(lines_of(vehicle, lines // VEHICLES, healthy=False)) + "\n"
        log = LogFile(
            f"log-{vehicle}", f"{vehicle}.log", f"log-{vehicle}", len(text), vehicle_id=f"V{vehicle}"
        )
        await objects.write(log.object_key, _chunks(text))
        logs.append(log)
        gathering.add(log, parse(log.name, [text.encode()]))
        figures.raw_tokens += tokens_of(text)
    for vehicle in range(VEHICLES):
        text = "\n".join(lines_of(vehicle, lines // VEHICLES, healthy=True))
        usual = LogFile(f"usual-{vehicle}", f"{vehicle}.log", "", len(text), vehicle_id=f"V{vehicle}")
        gathering.add_baseline(usual, parse(usual.name, [text.encode()]))
    summary = gathering.summary("batch", 1, Baseline("baseline"))
    model = CountingModel()
    outcome = await _diagnosed(summary, logs, model, StoredLogLines(objects))
    room = Limits().prompt_tokens - FRAME_TOKENS
    figures.raw_segments = -(-figures.raw_tokens // room)
    figures.without_summary = figures.raw_tokens + figures.raw_segments * FRAME_TOKENS
    figures.with_summary = model.tokens_in + model.tokens_out
    figures.calls, figures.anomalies = model.calls, len(summary.anomalies)
    figures.findings = len(outcome.diagnosis.findings)
    figures.factor = round(figures.without_summary / figures.with_summary, 1)
    return figures


async def _diagnosed(
    summary: BatchSummary, logs: list[LogFile], model: CountingModel, lines: StoredLogLines
) -> DiagnosisOutcome:
    session = DiagnosisSession(
        models=model, lines=lines, open_saver=lambda _: InMemorySaver(), clock=SystemClock()
    )
    run = DiagnosisRun(
        thread_id="run",
        epoch=1,
        batch_id="batch",
        generation=1,
        model="counting",
        summary=summary,
        logs=logs,
        payer=Payer("local", "batch"),
        secret=b"a secret of this run",
    )
    return await session.diagnose(
        run, on_state=_unheard, on_restart=_unheard, on_delta=_unheard, draining=lambda: False
    )


def _unheard(_: AgentState | str) -> None:
    """Nobody watches a benchmark."""


async def _chunks(text: str) -> AsyncIterator[bytes]:
    yield text.encode()


def main() -> None:
    """Run it and print the figures."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    arguments.add_argument("--json", action="store_true", help="print one JSON object")
    arguments.add_argument("--lines", type=int, default=LINES)
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure(chosen.lines, Path(folder)))
    if chosen.json:
        sys.stdout.write(json.dumps(vars(figures)) + "\n")
        return
    sys.stdout.write(
        f"{figures.lines:,} lines of {VEHICLES} vehicles, {figures.anomalies} anomalies, "
        f"{figures.findings} findings with checked evidence\n"
        f"without the summary: {figures.without_summary:,} tokens in {figures.raw_segments} segments\n"
        f"with it:             {figures.with_summary:,} tokens in {figures.calls} calls\n"
        f"factor:              {figures.factor:g}\n"
    )


if __name__ == "__main__":
    main()
