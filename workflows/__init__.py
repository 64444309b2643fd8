"""What happens, in order, for as long as it takes; deterministic."""
