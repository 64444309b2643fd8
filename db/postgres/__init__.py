"""Postgres: one module per subject, with its SQL beside its mapper."""
