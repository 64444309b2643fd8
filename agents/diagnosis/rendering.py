"""Prompts rendered from versioned files: rules in the system message, log text fenced in a user one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from pydantic import BaseModel

from agents.diagnosis.evidence import one_line
from agents.diagnosis.replies import MAX_LOOKS_PER_TURN, Conclusion, Notes, Plan, schema_of
from agents.diagnosis.state import Context, DiagnosisState
from agents.diagnosis.tools import Looked
from agents.grading.fence import fence_mark
from domain.completion import CompletionRequest, Message
from domain.diagnosis import Anomaly, BatchSummary, Case, Purpose
from domain.logs import Quote

#: a prompt is never edited: a better one is a file with the next number
SYSTEM_TEMPLATE = "diagnose@1"
CASE_TEMPLATE = "case@1"
REPAIR_TEMPLATE = "repair@1"
TASKS: Mapping[Purpose, str] = {
    Purpose.SURVEY: "survey@1",
    Purpose.INVESTIGATE: "investigate@1",
    Purpose.CONCLUDE: "conclude@1",
}
REPLIES: Mapping[Purpose, type[BaseModel]] = {
    Purpose.SURVEY: Notes,
    Purpose.INVESTIGATE: Plan,
    Purpose.CONCLUDE: Conclusion,
}
#: of a line, a title or a name, in characters
MAX_SHOWN = 300
MAX_SHOWN_VEHICLES, MAX_SHOWN_FILES, MAX_NAMED = 60, 60, 8
#: bytes of UTF-8 for a token, as log lines have them: digits and punctuation cost more than words
BYTES_PER_TOKEN = 3
#: what looks may fill of a prompt
_FOUND_SHARE = 0.4


@dataclass(frozen=True)
class Found:
    """A look and what it brought."""

    look: Mapping[str, Any]
    looked: Looked


@dataclass(frozen=True)
class Fault:
    """Why a reply has to be given again; `problem` quotes nothing of it."""

    problem: str = ""
    missing: Sequence[str] = ()
    cut: bool = False


def render_request(
    context: Context,
    state: DiagnosisState,
    purpose: Purpose,
    *,
    shown: Sequence[Anomaly],
    found: Sequence[Found] = (),
    segment: int = 0,
    faults: Sequence[Fault] = (),
) -> CompletionRequest:
    """The next call for that purpose: the same for the same state, however often it is tried."""
    run = context.run
    lines = tuple(line for each in found for line in each.looked.lines)
    task = _render(
        TASKS[purpose],
        found=[(each.look, [_line(context, line) for line in each.looked.lines], each) for each in found],
        notes=state.get("notes", ()),
        segment=segment,
        segments=state.get("segments", 0),
        left=context.limits.investigations - state.get("turns", 0),
        looks=MAX_LOOKS_PER_TURN,
        mark=_mark(context, "found", _told(state, found)),
    )
    messages = [
        Message("system", _render(SYSTEM_TEMPLATE)),
        # the same in every call of a diagnosis: a provider's cache of prompts reaches to its end
        Message("user", f"{case_text(context, shown)}\n\n{task}"),
        *(Message("user", _render(REPAIR_TEMPLATE, fault=each)) for each in faults),
    ]
    step = context.step(purpose)
    return CompletionRequest(
        step=step,
        call_number=state.get("calls", {}).get(purpose, 0) + 1,
        model=run.model,
        case=Case(purpose, run.summary, lines, state.get("turns", 0)),
        messages=tuple(messages),
        schema=schema_of(REPLIES[purpose]),
        template=f"{SYSTEM_TEMPLATE}/{TASKS[purpose]}",
        # one that was cut gets more room
        max_tokens=context.limits.reply_tokens * 2 ** sum(each.cut for each in faults),
        payer=run.payer,
        fence=context.fence,
        trace_id=run.trace_id,
    )


def case_text(context: Context, shown: Sequence[Anomaly]) -> str:
    """The batch as the model sees it: figures, these anomalies with their lines, vehicles and files."""
    summary = context.run.summary
    blocks = [anomaly_text(context, each) for each in shown]
    vehicles, files_ = _vehicles(summary, shown), _files(context, shown)
    return _render(
        CASE_TEMPLATE,
        summary=summary,
        levels=", ".join(f"{level} {count}" for level, count in summary.levels.items()) or "none stated",
        anomalies=blocks,
        shown=len(shown),
        total=max(summary.anomaly_count, len(summary.anomalies)),
        vehicles=vehicles,
        files=files_,
        mark=_mark(context, "case", "".join((*blocks, *vehicles, *files_))),
    )


def anomaly_text(context: Context, anomaly: Anomaly) -> str:
    """One anomaly with its lines, a row each."""
    facts = [
        f"change={anomaly.change}",
        f"level={anomaly.level}" if anomaly.level else "",
        f"score={anomaly.score:.2f}",
        f"count={anomaly.count} (baseline {anomaly.baseline_count})",
        f"rate={anomaly.rate:.3g} (baseline {anomaly.baseline_rate:.3g}) per 1000 lines",
        f"value={anomaly.value:g} {anomaly.unit}" if anomaly.value is not None else "",
        f"limit={anomaly.bound:g} {anomaly.unit}" if anomaly.bound is not None else "",
        f"files={anomaly.files}",
        f"vehicles={_some(anomaly.vehicles)}" if any(anomaly.vehicles) else "",
        f"from {anomaly.first_at} to {anomaly.last_at}" if anomaly.first_at else "",
    ]
    head = f"[{anomaly.code}] {_shown(anomaly.title)}\n  {'; '.join(filter(None, facts))}"
    return "\n".join([head, *(f"  {_line(context, each)}" for each in anomaly.quotes)])


def pages(context: Context, anomalies: Sequence[Anomaly]) -> list[list[Anomaly]]:
    """The anomalies by score in as few segments as fit a prompt each."""
    room = context.limits.prompt_tokens - tokens_of(_render(SYSTEM_TEMPLATE) + case_text(context, ()))
    room = int(room * (1 - _FOUND_SHARE))
    filled: list[list[Anomaly]] = []
    left = -1
    for anomaly in sorted(anomalies, key=lambda each: -each.score):
        tokens = tokens_of(anomaly_text(context, anomaly))
        if tokens > left:
            filled.append([])
            left = room
        filled[-1].append(anomaly)
        left -= tokens
    return filled


def tokens_of(text: str) -> int:
    """About how many tokens a text has."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def room_for_found(context: Context) -> int:
    """How many tokens of lines that were looked up a prompt takes."""
    return int(context.limits.prompt_tokens * _FOUND_SHARE)


def _line(context: Context, quote: Quote) -> str:
    member = f" member={_shown(quote.member)}" if quote.member else ""
    return f"{context.names.name(quote.file_id)}{member} line {quote.line}: {_shown(quote.text)}"


def _vehicles(summary: BatchSummary, shown: Sequence[Anomaly]) -> list[str]:
    codes = {each.code for each in shown}
    having = [
        f"{_shown(each.vehicle_id)}: {each.lines} lines; "
        + _some(sorted(codes.intersection(each.anomaly_codes)))
        for each in summary.vehicles
        if each.vehicle_id and not codes.isdisjoint(each.anomaly_codes)
    ]
    return having[:MAX_SHOWN_VEHICLES]


def _files(context: Context, shown: Sequence[Anomaly]) -> list[str]:
    """The files that the anomalies' lines are from."""
    quoted = {quote.file_id for each in shown for quote in each.quotes}
    return [
        f"{context.names.name(each.file_id)} {_shown(each.name)} ({each.format}, {each.lines} lines"
        + (f", vehicle {_shown(each.vehicle_id)}" if each.vehicle_id else "")
        + (f", incomplete: {_shown(each.incomplete)}" if each.incomplete else "")
        + ")"
        for each in context.run.summary.logs
        if each.file_id in quoted
    ][:MAX_SHOWN_FILES]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(_shown(each) for each in names[:MAX_NAMED]) + more


def _told(state: DiagnosisState, found: Sequence[Found]) -> str:
    """All of a task that comes from the logs, or from a model that has read them."""
    notes = (each["note"] for each in state.get("notes", ()))
    looks = (f"{each.look}{line.member}{line.text}" for each in found for line in each.looked.lines)
    return "".join((*notes, *looks))


def _shown(text: str) -> str:
    return one_line(text[: 2 * MAX_SHOWN])[:MAX_SHOWN]


def _mark(context: Context, name: str, text: str) -> str:
    run = context.run
    return fence_mark(run.secret, f"{run.batch_id}/g{run.generation}/{name}", text)


def _render(template: str, **values: Any) -> str:
    return _prompts().get_template(f"{template}.md").render(values).strip()


@cache
def _prompts() -> Environment:
    """The prompt files; values are put in as they are and never read as templates."""
    folder = files("agents.diagnosis") / "prompts"
    texts = {each.name: each.read_text(encoding="utf-8") for each in folder.iterdir()}
    return Environment(
        loader=DictLoader(texts),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701  # prompts are no HTML: an escaped line could not be quoted verbatim
        trim_blocks=True,
        lstrip_blocks=True,
    )
