"""The diagnosis graph: which node follows which.

```text
survey ─── investigate ─── conclude ─── check_evidence ─── finish
 │  ↺          ↺               ▲               │              ▲
 │ a segment   a look at       └───────────────┘              │
 │ each        lines each        once, naming what            │
 │                               was not there                │
 └──────────── nothing stands out ────────────────────────────┘
```
"""

from typing import Any

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from agents.diagnosis.nodes import check_evidence, conclude, finish, investigate, survey
from agents.diagnosis.state import Context, DiagnosisState

DiagnosisGraph = CompiledStateGraph[DiagnosisState, Context, Any, Any]


def build_graph() -> DiagnosisGraph:
    """The graph, compiled without a saver: every run brings its own."""
    builder: StateGraph[DiagnosisState, Context, Any, Any] = StateGraph(DiagnosisState, Context)
    builder.add_node("survey", survey, destinations=("survey", "investigate", "finish"))
    builder.add_node("investigate", investigate, destinations=("investigate", "conclude"))
    builder.add_node("conclude", conclude, destinations=("conclude", "check_evidence"))
    builder.add_node("check_evidence", check_evidence, destinations=("conclude", "finish"))
    builder.add_node("finish", finish)
    builder.add_edge(START, "survey")
    builder.add_edge("finish", END)
    return builder.compile(name="diagnosis")
