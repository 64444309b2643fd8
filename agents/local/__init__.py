"""The embedded model: deterministic rules over words, advisory."""
