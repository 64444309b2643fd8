"""Batch throughput: the engine's ceiling against plain LangGraph, and the wall time with a slow model.

Part A: 200 one-question submissions, scripted model without latency, everything on; then the same graph
and submissions in plain LangGraph. Part B: 300 submissions at 10 s of model latency, 50 at once.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run by its path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.figures import machine
from benchmarks.installation import Installation, Listener, installation
from benchmarks.material import INSTANT, SLOW
from runtime.processes import TETHER
from runtime.settings import LogSettings
from runtime.telemetry import configure_logs

AIM_EVENTS_PER_CHILD = 20
AIM_WALL_OVER_IDEAL = 1.2
WORKERS = ("worker-orchestration", "worker-cognition")
SERVERS = ("temporal", "postgres", "valkey")
INTERRUPTED = 130


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    warm_up_files: int
    ceiling_files: int
    ceiling_concurrent: int
    latency_files: int
    latency_concurrent: int
    latency_seconds: float

    @property
    def ideal_seconds(self) -> float:
        """The wall time of part B if nothing but the model took time."""
        return self.latency_files / self.latency_concurrent * self.latency_seconds


FULL = Size(
    warm_up_files=50,
    ceiling_files=200,
    ceiling_concurrent=50,
    latency_files=300,
    latency_concurrent=50,
    latency_seconds=10.0,
)
QUICK = Size(
    warm_up_files=10,
    ceiling_files=50,
    ceiling_concurrent=50,
    latency_files=50,
    # asks the engine for five files a second, as the full form does
    latency_concurrent=10,
    latency_seconds=2.0,
)


async def measure(size: Size, bars: Progress) -> dict[str, Any]:
    """Both parts, one after the other, on one installation."""
    facts = machine()
    starting = bars.add_task("starting the installation", total=None)
    async with installation(size.latency_seconds) as running:
        bars.remove_task(starting)
        ceiling = await _measure_ceiling(running, size, bars)
        plain = await _measure_plain(running, size, bars)
        latency = await _measure_latency(running, size, bars)
        bars.add_task("stopping", total=None)
    return {
        "ceiling": ceiling,
        "plain_langgraph": plain,
        "ratio_to_plain_langgraph": round(ceiling["files_per_second"] / plain["runs_per_second"], 3),
        "latency": latency | {"ceiling_files_per_second": ceiling["files_per_second"]},
        "machine": facts,
    }


async def _measure_ceiling(running: Installation, size: Size, bars: Progress) -> dict[str, Any]:
    """Part A: how many files a second the engine can do when the model costs nothing."""
    with _bar(bars, "warming up", size.warm_up_files) as heard:
        await running.run(await running.hand_in(INSTANT, size.warm_up_files, size.ceiling_concurrent), heard)
    with _bar(bars, "A: no latency", size.ceiling_files) as heard:
        batch_id = await running.hand_in(INSTANT, size.ceiling_files, size.ceiling_concurrent)
        timed = await running.run(batch_id, heard)
    events = await running.history_lengths(batch_id, size.ceiling_files)
    spent = {name: seconds / size.ceiling_files for name, seconds in timed.cpu.items()}
    return {
        "files": size.ceiling_files,
        "concurrent": size.ceiling_concurrent,
        "seconds": round(timed.seconds, 2),
        "files_per_second": round(size.ceiling_files / timed.seconds, 2),
        "worker_cpu_ms_per_file": _milliseconds(spent, WORKERS),
        "server_cpu_ms_per_file": _milliseconds(spent, SERVERS),
        "api_cpu_ms_per_file": round(spent["api"] * 1000, 1),
        "events_per_child": {
            "mean": round(statistics.mean(events), 2),
            "max": max(events),
            "aim": AIM_EVENTS_PER_CHILD,
        },
    }


def _milliseconds(spent: dict[str, float], names: Iterable[str]) -> dict[str, float]:
    """Each one's milliseconds and their sum."""
    parts = {name.removeprefix("worker-"): spent[name] * 1000 for name in names}
    return {name: round(value, 1) for name, value in (parts | {"sum": sum(parts.values())}).items()}


async def _measure_plain(running: Installation, size: Size, bars: Progress) -> dict[str, Any]:
    """The peer, on the same Postgres server in a database of its own."""
    await running.postgres.execute("CREATE DATABASE plain")
    url = running.addresses.postgres_url.rpartition("/")[0] + "/plain"
    postgres = running.cpu_seconds()["postgres"]
    with _bar(bars, "A: plain LangGraph", None):
        plain = await _run_plain(url, size)
    postgres = running.cpu_seconds()["postgres"] - postgres
    # the server's share counts the warm-up too, so it is divided by all runs
    runs, all_runs = plain["runs"], plain["runs"] + size.warm_up_files
    return {
        "runs": runs,
        "seconds": round(plain["seconds"], 2),
        "runs_per_second": round(runs / plain["seconds"], 2),
        "process_cpu_ms_per_run": round(plain["cpu_seconds"] / runs * 1000, 1),
        "postgres_cpu_ms_per_run": round(postgres / all_runs * 1000, 1),
    }


async def _run_plain(url: str, size: Size) -> dict[str, float]:
    """Run the peer in a process of its own that ends with this one."""
    tether = [sys.executable, "-I", "-S", str(TETHER), signal.SIGKILL.name, str(os.getpid()), "--"]
    peer = [sys.executable, str(Path(__file__).with_name("plain_langgraph.py"))]
    options = {
        "--runs": size.ceiling_files,
        "--concurrent": size.ceiling_concurrent,
        "--warm-up": size.warm_up_files,
    }
    arguments = [str(part) for option in options.items() for part in option]
    process = await asyncio.create_subprocess_exec(
        *tether,
        *peer,
        *arguments,
        env=os.environ | {"PLAIN_POSTGRES_URL": url},
        stdout=subprocess.PIPE,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"The peer ended with exit code {process.returncode}.")
    measured: dict[str, float] = json.loads(output)
    return measured


async def _measure_latency(running: Installation, size: Size, bars: Progress) -> dict[str, Any]:
    """Part B: how near the wall time comes to the model's own."""
    with _bar(bars, f"B: {size.latency_seconds:g} s latency", size.latency_files) as heard:
        batch_id = await running.hand_in(SLOW, size.latency_files, size.latency_concurrent)
        timed = await running.run(batch_id, heard)
    return {
        "files": size.latency_files,
        "concurrent": size.latency_concurrent,
        "model_latency_seconds": size.latency_seconds,
        "ideal_seconds": size.ideal_seconds,
        "wall_seconds": round(timed.seconds, 2),
        "wall_over_ideal": round(timed.seconds / size.ideal_seconds, 3),
        "aim": AIM_WALL_OVER_IDEAL,
    }


@contextmanager
def _bar(bars: Progress, title: str, total: int | None) -> Iterator[Listener]:
    task = bars.add_task(title, total=total)
    yield lambda ended: bars.update(task, completed=ended)
    bars.update(task, total=total or 1, completed=total or 1)


def show(figures: dict[str, Any], console: Console) -> None:
    """The figures for people."""
    table = Table("figure", "measured", "aim", box=None)
    for name, value, aim in _rows(figures):
        table.add_row(name, value, aim)
    console.print(table)
    facts = figures["machine"]
    console.print(
        f"{facts['cores']} cores ({facts['cpu']}), {facts['memory_gib']} GiB, Python {facts['python']}, "
        f"load {facts['load_average_before']} before the start; "
        + ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    )


def _rows(figures: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    ceiling, plain, latency = figures["ceiling"], figures["plain_langgraph"], figures["latency"]
    events = ceiling["events_per_child"]
    yield f"A: {ceiling['files']} files without latency", f"{ceiling['files_per_second']} files/s", ""
    yield "   worker CPU per file", _shares(ceiling["worker_cpu_ms_per_file"]), ""
    yield "   server CPU per file", _shares(ceiling["server_cpu_ms_per_file"]), ""
    yield "   API CPU per file", f"{ceiling['api_cpu_ms_per_file']} ms", ""
    yield "   events per child", f"mean {events['mean']}, max {events['max']}", f"≤ {events['aim']}"
    yield "   plain LangGraph, no Temporal", f"{plain['runs_per_second']} runs/s", ""
    cpu = f"{plain['process_cpu_ms_per_run']} ms, Postgres {plain['postgres_cpu_ms_per_run']} ms"
    yield "   its CPU per run", cpu, ""
    yield "   ours ÷ plain", f"{figures['ratio_to_plain_langgraph']}", ""
    seconds = f"{latency['model_latency_seconds']:g} s"
    title = f"B: {latency['files']} files at {seconds}, {latency['concurrent']} at once"
    yield title, f"{latency['wall_seconds']} s of ideal {latency['ideal_seconds']:g} s", ""
    yield "   wall ÷ ideal", f"{latency['wall_over_ideal']}", f"≤ {latency['aim']}"
    yield "   engine's ceiling (from A)", f"{latency['ceiling_files_per_second']} files/s", ""


def _shares(parts: dict[str, float]) -> str:
    shares = ", ".join(f"{name} {value}" for name, value in parts.items() if name != "sum")
    return f"{parts['sum']} ms ({shares})"


async def _until_interrupted(size: Size, bars: Progress) -> dict[str, Any]:
    """Measure; a signal ends everything that was started, in order, before it is raised."""
    task = asyncio.ensure_future(measure(size, bars))
    loop = asyncio.get_running_loop()
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(each, task.cancel)
    return await task


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="benchmarks.batch", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--quick", action="store_true", help="a smaller form: 50 files, 2 s of latency")
    given = parser.parse_args()
    configure_logs(LogSettings(level="warning"), process="benchmark")
    try:
        with Progress(console=Console(stderr=True)) as bars:
            size = QUICK if given.quick else FULL
            figures = asyncio.run(_until_interrupted(size, bars))
    except (asyncio.CancelledError, KeyboardInterrupt):
        return INTERRUPTED
    if given.json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    else:
        show(figures, Console(highlight=False))
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # temporalio's threads sometimes crash the interpreter while it is taken down (sdk-python #300)
    os._exit(code)
