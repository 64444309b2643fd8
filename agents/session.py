"""One attempt at grading one submission: its thread, its saver, and where to resume."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl
from langsmith import tracing_context

from agents.boundary import Boundary, newest_events, refusal_of
from agents.draining import Draining
from agents.grading.graph import GradingGraph, build_graph
from agents.grading.state import (
    Context,
    GradingState,
    assessment_of,
    check_results,
    check_state,
    initial_state,
)
from domain.assessment import Assessment
from domain.batch import AgentState
from domain.completion import DEFAULT_MAX_TOKENS, Fence
from domain.errors import AgentDrained, CorruptCheckpoint
from domain.external_events import Outside
from domain.identity import WorkflowRef
from domain.ports import AgentOutcome, AgentRun, Clock, Models

DEFAULT_MAX_PARALLEL = 8

Saver = BaseCheckpointSaver[Any]
#: what `astream` yields for several modes, which LangGraph's types do not tell
_Events = AsyncGenerator[tuple[str, Any], None]


class GradingSession:
    """The grading agent: resumes a thread where it was, or starts it afresh and says so."""

    def __init__(
        self,
        *,
        models: Models,
        open_saver: Callable[[int], Saver],
        clock: Clock,
        max_parallel: int = DEFAULT_MAX_PARALLEL,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        outside: Outside | None = None,
    ) -> None:
        self._models = models
        self._outside = outside
        self._open_saver = open_saver
        self._clock = clock
        self._max_parallel = max_parallel
        self._max_tokens = max_tokens
        # eager: an event is delivered when it happens, not when the next model call returns
        self._graph = build_graph().copy({"stream_eager": True})

    async def assess(
        self,
        run: AgentRun,
        *,
        on_state: Callable[[AgentState], None],
        on_restart: Callable[[str], None],
        draining: Callable[[], bool],
    ) -> AgentOutcome:
        """Grade; raises `AgentDrained` when it stopped because `draining` asked for it.

        Raises `BudgetExhausted` when it stopped as the batch is paused.
        """
        saver = self._open_saver(run.epoch)
        narrator = _Narrator(run, on_state, self._clock)
        restarted = False
        try:
            checkpoint = await _load(saver, run)
        except CorruptCheckpoint as error:
            on_restart(error.message)
            await saver.adelete_thread(run.thread_id)
            checkpoint, restarted = None, True
        if checkpoint is not None and "total" in checkpoint.checkpoint["channel_values"]:
            narrator.tell_finished(checkpoint)
        else:
            # copying costs 0.03 ms, compiling 4 ms
            graph = self._graph.copy({"checkpointer": saver})
            boundary = Boundary(self._outside, WorkflowRef(run.payer.batch_id, run.file_id, run.generation))
            control = Draining(lambda: draining() or boundary.stopped_by is not None)
            await self._advance(graph, run, boundary, narrator, control, fresh=checkpoint is None)
        return AgentOutcome(narrator.assessment(), narrator.state, restarted)

    async def _advance(
        self,
        graph: GradingGraph,
        run: AgentRun,
        boundary: Boundary,
        narrator: "_Narrator",
        control: RunControl,
        *,
        fresh: bool,
    ) -> None:
        """Run the graph from its input or its checkpoint to the end."""
        events = graph.astream(
            initial_state(run) if fresh else None,
            _config(run),
            context=self._context(run, boundary),
            stream_mode=["updates", "checkpoints"],
            durability="sync",
            control=control,
        )
        try:
            # an error in a callback closes the graph's tasks before it goes on; and nobody else gets to see
            # a submission, whatever LangSmith's variables say
            with tracing_context(enabled=False):
                async with aclosing(cast("_Events", events)) as stream:
                    async for mode, data in stream:
                        narrator.hear(mode, data)
        except GraphDrained as drained:
            if boundary.stopped_by is not None:
                raise refusal_of(boundary.stopped_by) from drained
            raise AgentDrained(f"Thread {run.thread_id} stopped after {narrator.state.node}.") from drained

    def _context(self, run: AgentRun, boundary: Boundary) -> Context:
        return Context(
            exam=run.exam,
            answers=run.answers,
            models=self._models,
            model=run.model,
            file_id=run.file_id,
            generation=run.generation,
            # not LangGraph's max_concurrency: that one also queues the saving of finished nodes
            # behind the model calls of unfinished ones
            slots=asyncio.Semaphore(self._max_parallel),
            payer=run.payer,
            secret=run.secret,
            max_tokens=self._max_tokens,
            fence=Fence(run.thread_id, run.epoch),
            trace_id=run.trace_id,
            boundary=boundary,
        )


def _config(run: AgentRun) -> RunnableConfig:
    return {"configurable": {"thread_id": run.thread_id}}


async def _load(saver: Saver, run: AgentRun) -> CheckpointTuple | None:
    """The thread's last checkpoint, `None` if there is none; raises `CorruptCheckpoint`."""
    checkpoint = await saver.aget_tuple(_config(run))
    if checkpoint is None:
        return None
    values = checkpoint.checkpoint["channel_values"]
    # the first two checkpoints hold the input alone: the plan comes with step 1
    if checkpoint.metadata.get("step", 1) > 0:
        check_state(values, run)
    for _, channel, value in checkpoint.pending_writes or ():
        if channel == "results":
            check_results(value, run.exam)
    return checkpoint


@dataclass
class _Narrator:
    """Follows a run's events and tells its state after every durable step."""

    run: AgentRun
    on_state: Callable[[AgentState], None]
    clock: Clock
    state: AgentState = field(init=False)
    values: Mapping[str, Any] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.state = AgentState(thread_id=self.run.thread_id)

    def hear(self, mode: str, data: Mapping[str, Any]) -> None:
        """Take in one event of the stream."""
        if mode == "updates":
            for node, update in data.items():
                self._hear_update(node, update or {})
        elif "plan" in data["values"]:
            self._hear_checkpoint(data)

    def tell_finished(self, checkpoint: CheckpointTuple) -> None:
        """Tell of a thread that has nothing left to do."""
        self.values = checkpoint.checkpoint["channel_values"]
        self._tell("sum_points", checkpoint.checkpoint["id"])

    def assessment(self) -> Assessment:
        """What the finished thread's state adds up to."""
        return assessment_of(cast("GradingState", self.values), self.run.exam)

    def _hear_update(self, node: str, update: Mapping[str, Any]) -> None:
        """A question is finished while others of the same step still run."""
        new = set(update.get("results", ())) - self.finished
        if new:
            self.finished |= new
            self._tell(node, self.state.checkpoint_id)

    def _hear_checkpoint(self, data: Mapping[str, Any]) -> None:
        self.values = data["values"]
        self.finished |= set(self.values.get("results", ()))
        self._tell(_last_node(self.values, data["next"]), data["config"]["configurable"]["checkpoint_id"])

    def _tell(self, node: str, checkpoint_id: str) -> None:
        done = "total" in self.values
        self.state = AgentState(
            thread_id=self.run.thread_id,
            checkpoint_id=checkpoint_id,
            node=node,
            stage="done" if done else _STAGES.get(node, "grading"),
            percentage=100.0 if done else self._percentage(),
            updated_at=self.clock.now().isoformat(),
            external_events=newest_events(self.values),
        )
        self.on_state(self.state)

    def _percentage(self) -> float:
        # adding up counts as one more question: 100 is for the finished thread alone
        return round(100 * len(self.finished) / (len(self.run.exam.questions) + 1), 1)


_STAGES = {"supervisor": "grading", "check_evidence": "checking", "sum_points": "done"}


def _last_node(values: Mapping[str, Any], following: Collection[str]) -> str:
    """The node that a checkpoint was written after, read off the checkpoint itself."""
    if "total" in values:
        return "sum_points"
    if not values.get("results"):
        return "supervisor"
    if "check_evidence" in following:
        *_, last = values["results"].values()
        return str(last["result"]["specialist"])
    return "check_evidence"
