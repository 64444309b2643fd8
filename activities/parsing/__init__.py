"""Logs read: formats, packing, times, levels and measured values; lines out, one at a time."""
