"""The only door to a model: routing by name, and upstreams behind it."""
