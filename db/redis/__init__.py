"""Redis (Valkey): cache, barrier, progress; never the truth."""
