"""Diagnose one gathered batch of logs: the agent's whole run is this one activity (B7.2)."""

from dataclasses import dataclass, field

from domain.batch import AgentState


@dataclass
class DiagnoseInput:
    """Which batch, in which generation, by which model; ids only."""

    tenant_id: str
    batch_id: str
    generation: int
    model: str
    first_execution_run_id: str
    trace_id: str = ""
    #: the workflow hears of the agent's state at most once in this time, by its signal `agent_state`
    state_interval_seconds: float = 30.0


@dataclass
class DiagnoseResult:
    """Where the agent ended; `ended` is set instead if the batch had reached a final state before."""

    state: AgentState = field(default_factory=AgentState)
    ended: str | None = None
    #: a value of `domain.diagnosis.Verdict`
    verdict: str = ""
    #: the earlier batch whose diagnosis was reused; empty for none
    reused_from: str = ""
    spent_nanodollars: int = 0
