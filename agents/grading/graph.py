"""The grading graph: which node follows which.

```text
supervisor ─┬─ closed_question ─┐
            ├─ short_answer ────┤                   (one task a question, in parallel)
            ├─ essay ───────────┼─ check_evidence ── sum_points
            └─ code ────────────┘        │
                 ▲                       │  a quote that is not in the answer, once a question
                 └───────────────────────┘
```

Between two steps the graph hears what has happened outside; `supervisor` and `check_evidence` run again
where a paused batch lets no call begin.
"""

from typing import Any

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from agents.grading.nodes import check_evidence, closed_question, open_question, sum_totals, supervisor
from agents.grading.state import CLOSED_SPECIALIST, OPEN_SPECIALISTS, Context, GradingState

GradingGraph = CompiledStateGraph[GradingState, Context, Any, Any]


def build_graph() -> GradingGraph:
    """The graph, compiled without a saver: every run brings its own."""
    specialists = (CLOSED_SPECIALIST, *OPEN_SPECIALISTS)
    builder: StateGraph[GradingState, Context, Any, Any] = StateGraph(GradingState, Context)
    builder.add_node("supervisor", supervisor, destinations=(*specialists, "supervisor"))
    builder.add_node(CLOSED_SPECIALIST, closed_question)
    for specialist in OPEN_SPECIALISTS:
        builder.add_node(specialist, open_question(specialist))
    checked = (*OPEN_SPECIALISTS, "check_evidence", "sum_points")
    builder.add_node("check_evidence", check_evidence, destinations=checked)
    builder.add_node("sum_points", sum_totals)
    builder.add_edge(START, "supervisor")
    for specialist in specialists:
        builder.add_edge(specialist, "check_evidence")
    builder.add_edge("sum_points", END)
    return builder.compile(name="grading")
