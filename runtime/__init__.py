"""The only place that reads the environment, opens things and wires them together."""
