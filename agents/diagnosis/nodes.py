"""The nodes of the diagnosis graph: the same output for the same state, lines and replies."""

from collections.abc import Sequence
from typing import Any, Literal

from langgraph.runtime import Runtime
from langgraph.types import Command

from agents.diagnosis.outcome import diagnosed
from agents.diagnosis.rendering import (
    Fault,
    Found,
    pages,
    render_request,
    room_for_found,
    tokens_of,
)
from agents.diagnosis.replies import Answer, Conclusion, Notes, Plan, read_reply
from agents.diagnosis.state import FINISHED, Context, DiagnosisState, tokens_spent, with_reply
from agents.diagnosis.telling import Telling, tell_whole
from agents.diagnosis.tools import Looked
from domain.completion import CompletionReply, FinishReason
from domain.diagnosis import Anomaly, Finding, Purpose
from domain.documents import from_plain, plain
from domain.errors import ModelReplyInvalid
from domain.logs import Quote

#: an invalid reply is asked for once more, within one visit to a node
ATTEMPTS_PER_VISIT = 2

Update = dict[str, Any]


async def survey(
    state: DiagnosisState, runtime: Runtime[Context]
) -> Command[Literal["survey", "investigate", "finish"]]:
    """See whether the summary fits a prompt; of one that does not, take notes segment by segment."""
    context = runtime.context
    heard, pause = await context.boundary.hear(state)
    segments = pages(context, context.run.summary.anomalies)[: context.limits.segments]
    if not segments:
        return Command(update={"segments": 0, **heard}, goto="finish")
    if len(segments) == 1:
        return Command(update={"segments": 0, **heard}, goto="investigate")
    if pause is not None:
        return context.boundary.stop(pause, heard, "survey")
    before: DiagnosisState = {**state, "segments": len(segments)}
    number = state.get("surveyed", 0) + 1
    answer, after = await _ask(
        context, before, Purpose.SURVEY, Notes, shown=segments[number - 1], segment=number
    )
    notes = [*state.get("notes", ()), *(each.model_dump(mode="json") for each in answer.notes)]
    update = {**_counted(after), "segments": len(segments), "surveyed": number, "notes": notes, **heard}
    return Command(update=update, goto="survey" if number < len(segments) else "investigate")


async def investigate(
    state: DiagnosisState, runtime: Runtime[Context]
) -> Command[Literal["investigate", "conclude"]]:
    """Let the model ask for lines, for as long as it asks for new ones and the budget lasts."""
    context = runtime.context
    heard, pause = await context.boundary.hear(state)
    found = await _found(context, state)
    if _is_enough(context, state, found):
        return Command(update=heard, goto="conclude")
    if pause is not None:
        return context.boundary.stop(pause, heard, "investigate")
    answer, after = await _ask(
        context, state, Purpose.INVESTIGATE, Plan, shown=_shown(context, state), found=found
    )
    known = state.get("looks", [])
    asked = [look for each in answer.look if (look := each.model_dump(mode="json")) not in known]
    update = {**_counted(after), "looks": [*known, *asked], "turns": state.get("turns", 0) + 1, **heard}
    return Command(update=update, goto="investigate" if asked else "conclude")


async def conclude(
    state: DiagnosisState, runtime: Runtime[Context]
) -> Command[Literal["conclude", "check_evidence"]]:
    """Ask for the conclusion; the second time, naming the quotes that were not there."""
    context = runtime.context
    heard, pause = await context.boundary.hear(state)
    if pause is not None:
        return context.boundary.stop(pause, heard, "conclude")
    faults = [Fault(missing=missing)] if (missing := state.get("missing")) else []
    answer, after = await _ask(
        context,
        state,
        Purpose.CONCLUDE,
        Conclusion,
        shown=_shown(context, state),
        found=await _found(context, state),
        faults=faults,
    )
    update = {**_counted(after), "draft": answer.model_dump(mode="json"), **heard}
    return Command(update=update, goto="check_evidence")


async def check_evidence(
    state: DiagnosisState, runtime: Runtime[Context]
) -> Command[Literal["conclude", "finish"]]:
    """Hold every quote against its line; claims without any that is there go back once, then they go."""
    heard, _ = await runtime.context.boundary.hear(state)
    draft = Conclusion.model_validate(state["draft"])
    checked = await runtime.context.check.claims(draft.findings)
    # what was shown the first time stays, should the second reply be worse
    findings = [plain(each) for each in checked.findings] or state.get("findings", [])
    update = {"findings": findings, "refused": checked.refused, **heard}
    if checked.missing and not state.get("retried"):
        return Command(update={**update, "missing": list(checked.missing), "retried": True}, goto="conclude")
    return Command(update=update, goto="finish")


async def finish(state: DiagnosisState, runtime: Runtime[Context]) -> Update:
    """Put the verdict together, with its risk by the rules."""
    heard, _ = await runtime.context.boundary.hear(state)
    findings = [from_plain(Finding, each) for each in state.get("findings", ())]
    return {FINISHED: plain(diagnosed(runtime.context.run, state, findings)), **heard}


async def _ask(
    context: Context,
    state: DiagnosisState,
    purpose: Purpose,
    kind: type[Answer],
    *,
    shown: Sequence[Anomaly],
    found: Sequence[Found] = (),
    segment: int = 0,
    faults: Sequence[Fault] = (),
) -> tuple[Answer, DiagnosisState]:
    """The model's answer and the state with its calls counted; a reply of no use is asked for once more.

    Numbers continue after those in the state: a node that runs again after a crash asks under the same keys
    and is answered from the journal.
    """
    for attempt in range(1, ATTEMPTS_PER_VISIT + 1):
        request = render_request(
            context, state, purpose, shown=shown, found=found, segment=segment, faults=faults
        )
        telling = Telling(context.on_delta)
        reply = await context.models.complete(request, on_chunk=telling.hear)
        if not telling.told:
            tell_whole(reply.text, context.on_delta)
        state = with_reply(state, purpose, reply)
        try:
            return read_reply(reply, kind), state
        except ModelReplyInvalid as error:
            if attempt == ATTEMPTS_PER_VISIT:
                raise ModelReplyInvalid(f"{purpose}: {error.message}", field=error.field) from error
            faults = [*faults, _fault(reply, error)]
    raise AssertionError("unreachable: the last attempt returns or raises")


def _fault(reply: CompletionReply, error: ModelReplyInvalid) -> Fault:
    return Fault(error.message, cut=reply.finish_reason is FinishReason.LENGTH)


def _counted(state: DiagnosisState) -> Update:
    """What a call has changed in the state."""
    return {"calls": state["calls"], "spent": state["spent"], "answered_by": state["answered_by"]}


def _shown(context: Context, state: DiagnosisState) -> list[Anomaly]:
    """The anomalies of the prompt: all, or of a long summary those that the notes are about."""
    anomalies = context.run.summary.anomalies
    if state.get("segments"):
        noted = {code for each in state.get("notes", ()) for code in each["anomaly_codes"]}
        anomalies = tuple(each for each in anomalies if each.code in noted) or anomalies
    return next(iter(pages(context, anomalies)), [])


async def _found(context: Context, state: DiagnosisState) -> list[Found]:
    """What all looks so far have brought, as far as a prompt has room for it."""
    found: list[Found] = []
    room = room_for_found(context)
    for look in state.get("looks", ()):
        looked = await context.looking(look) if room > 0 else Looked((), "not shown: no room is left")
        room -= sum(tokens_of(_text(each)) for each in looked.lines)
        found.append(Found(look, looked))
    return found


def _text(quote: Quote) -> str:
    return quote.text[:300]


def _is_enough(context: Context, state: DiagnosisState, found: Sequence[Found]) -> bool:
    """Whether the budget of calls, of tokens or of lines is used up."""
    limits = context.limits
    return (
        state.get("turns", 0) >= limits.investigations
        or tokens_spent(state) >= limits.tokens
        or any(each.looked.problem.startswith("not shown") for each in found)
    )
