"""How a machine thinks: LangGraph graphs and the embedded model; no Temporal, no driver."""
