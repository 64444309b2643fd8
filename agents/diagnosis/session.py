"""One attempt at diagnosing one batch: its thread, its saver, and where to resume."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl
from langsmith import tracing_context

from agents.boundary import Boundary, newest_events, refusal_of
from agents.diagnosis.graph import DiagnosisGraph, build_graph
from agents.diagnosis.outcome import repeated
from agents.diagnosis.rules import with_signs
from agents.diagnosis.state import (
    FINISHED,
    Context,
    Limits,
    check_state,
    diagnosis_of,
    initial_state,
)
from agents.draining import Draining
from domain.batch import AgentState
from domain.diagnosis import Diagnosis, DiagnosisOutcome, DiagnosisRun
from domain.errors import AgentDrained, CorruptCheckpoint
from domain.external_events import Outside
from domain.gateway import Completions
from domain.identity import WorkflowRef
from domain.logs import LogLines
from domain.ports import Clock

Saver = BaseCheckpointSaver[Any]
#: what `astream` yields for several modes, which LangGraph's types do not tell
_Events = AsyncGenerator[tuple[str, Any], None]


class DiagnosisSession:
    """The diagnosis agent: resumes a thread where it was, or starts it afresh and says so."""

    def __init__(
        self,
        *,
        models: Completions,
        lines: LogLines,
        open_saver: Callable[[int], Saver],
        clock: Clock,
        limits: Limits | None = None,
        outside: Outside | None = None,
    ) -> None:
        self._models = models
        self._lines = lines
        self._open_saver = open_saver
        self._clock = clock
        self._limits = limits or Limits()
        self._outside = outside
        self._graph = build_graph().copy({"stream_eager": True})

    async def diagnose(
        self,
        run: DiagnosisRun,
        *,
        on_state: Callable[[AgentState], None],
        on_restart: Callable[[str], None],
        on_delta: Callable[[str], None],
        draining: Callable[[], bool],
    ) -> DiagnosisOutcome:
        """Diagnose; raises `AgentDrained` when it stopped because `draining` asked for it.

        Raises `BudgetExhausted` when it stopped as the batch is paused.
        """
        run = replace(run, summary=with_signs(run.summary))
        saver = self._open_saver(run.epoch)
        narrator = _Narrator(run, on_state, self._clock)
        restarted = False
        try:
            checkpoint = await _load(saver, run)
        except CorruptCheckpoint as error:
            on_restart(error.message)
            await saver.adelete_thread(run.thread_id)
            checkpoint, restarted = None, True
        if checkpoint is not None and FINISHED in checkpoint.checkpoint["channel_values"]:
            narrator.hear_values(checkpoint.checkpoint["channel_values"], checkpoint.checkpoint["id"])
        else:
            graph = self._graph.copy({"checkpointer": saver})
            workflow = WorkflowRef(run.batch_id, generation=run.generation, diagnosis=True)
            boundary = Boundary(self._outside, workflow)
            context = self._context(run, on_delta, boundary)
            control = Draining(lambda: draining() or boundary.stopped_by is not None)
            await self._advance(graph, run, context, narrator, control, fresh=checkpoint is None)
        return DiagnosisOutcome(diagnosis_of(narrator.values), narrator.state, restarted)

    async def reuse(self, run: DiagnosisRun, batch_id: str, earlier: Diagnosis) -> Diagnosis | None:
        """The diagnosis of an equal case said of this batch, with evidence of this batch's own."""
        run = replace(run, summary=with_signs(run.summary))
        return await repeated(run, self._context(run, _nothing, Boundary()).check, batch_id, earlier)

    async def _advance(
        self,
        graph: DiagnosisGraph,
        run: DiagnosisRun,
        context: Context,
        narrator: "_Narrator",
        control: RunControl,
        *,
        fresh: bool,
    ) -> None:
        """Run the graph from its input or its checkpoint to the end."""
        events = graph.astream(
            initial_state(run) if fresh else None,
            _config(run),
            context=context,
            stream_mode=["checkpoints"],
            durability="sync",
            control=control,
        )
        try:
            # nobody else gets to see a log, whatever LangSmith's variables say
            with tracing_context(enabled=False):
                async with aclosing(cast("_Events", events)) as stream:
                    async for _, data in stream:
                        narrator.hear_values(data["values"], data["config"]["configurable"]["checkpoint_id"])
        except GraphDrained as drained:
            if (pause := context.boundary.stopped_by) is not None:
                raise refusal_of(pause) from drained
            raise AgentDrained(f"Thread {run.thread_id} stopped after {narrator.state.node}.") from drained

    def _context(self, run: DiagnosisRun, on_delta: Callable[[str], None], boundary: Boundary) -> Context:
        return Context(run, self._models, self._lines, self._limits, on_delta, boundary)


def _nothing(_: str) -> None:
    """Hears a text that is not written."""


def _config(run: DiagnosisRun) -> RunnableConfig:
    return {"configurable": {"thread_id": run.thread_id}}


async def _load(saver: Saver, run: DiagnosisRun) -> CheckpointTuple | None:
    """The thread's last checkpoint, `None` if there is none; raises `CorruptCheckpoint`."""
    checkpoint = await saver.aget_tuple(_config(run))
    # the first checkpoint holds the input alone, in a channel of its own
    if checkpoint is not None and checkpoint.metadata.get("step", 1) > 0:
        check_state(checkpoint.checkpoint["channel_values"], run)
    return checkpoint


@dataclass
class _Narrator:
    """Tells a run's state after every durable step."""

    run: DiagnosisRun
    on_state: Callable[[AgentState], None]
    clock: Clock
    state: AgentState = field(init=False)
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.state = AgentState(thread_id=self.run.thread_id)

    def hear_values(self, values: Mapping[str, Any], checkpoint_id: str) -> None:
        """A checkpoint was saved with this state."""
        self.values = values
        node, stage, percentage = place_of(values)
        self.state = AgentState(
            thread_id=self.run.thread_id,
            checkpoint_id=checkpoint_id,
            node=node,
            stage=stage,
            percentage=percentage,
            updated_at=self.clock.now().isoformat(),
            external_events=newest_events(values),
        )
        self.on_state(self.state)


def place_of(values: Mapping[str, Any]) -> tuple[str, str, float]:
    """The last node, the stage and how far that is, in percent, read off the state itself."""
    if FINISHED in values:
        return "finish", "done", 100.0
    if "findings" in values:
        return "check_evidence", "checking", 85.0
    if "draft" in values:
        return "conclude", "checking", 75.0
    if values.get("turns"):
        return "investigate", "investigating", min(25.0 + 10.0 * values["turns"], 65.0)
    if "segments" in values:
        surveyed = values.get("surveyed", 0) / max(1, values["segments"])
        return "survey", "surveying", round(5.0 + 20.0 * surveyed, 1)
    return "", "starting", 0.0
