"""The gateway beside the LiteLLM proxy: one simulated upstream without latency behind each of them.

Assay has everything on: strict budgets with limits of key, profile and tenant, journal, quota copies, rate
limits. LiteLLM has one worker, no database and no budgets. Shown are requests per second at 1, 8 and 32
callers, and what each adds to the bare upstream.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run by its path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import httpx
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.callers import Asked, Timed, timed
from benchmarks.figures import cpu_seconds, machine
from benchmarks.installation import Installation, installation
from benchmarks.litellm_proxy import NotInstallable, litellm_proxy
from runtime.processes import TETHER
from runtime.settings import LogSettings
from runtime.telemetry import configure_logs

AIM_THROUGHPUT, AIM_ADDED = 10.0, 0.2
CALLERS = (1, 8, 32)
TURNS = 4
ASSAY = (sys.executable, "-P", "-m", "runtime.cli")
MODEL = "simulated"
PROFILE = "benchmark"
#: far beyond what is spent: each limit is checked, none refuses
LIMIT_USD = "1000000"
RATES = {"requests_per_minute": 1_000_000, "tokens_per_minute": 1_000_000_000, "max_concurrent": 10_000}
MESSAGES = [
    {"role": "system", "content": "You answer briefly and in plain words."},
    {"role": "user", "content": "Why does the sky look blue at noon and red in the evening? " * 5},
]
LEFT_SQL = """
SELECT 'calls', count(*) FROM ledger_journal
UNION ALL SELECT 'open_holds', count(*) FROM ledger_holds WHERE state IN ('held', 'dispatched', 'in_doubt')
"""

Cpu = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Target:
    """Who is asked, and the CPU seconds of each of its processes so far."""

    asked: Asked
    cpu: Cpu


@dataclass
class Measured:
    """A target at one number of callers: its calls, and the CPU seconds of each process meanwhile."""

    callers: int
    timed: Timed
    cpu: Counter[str]

    def figures(self) -> dict[str, Any]:
        """For people and programs."""
        spent = {name: round(seconds * 1000 / self.timed.all_calls, 3) for name, seconds in self.cpu.items()}
        return {"callers": self.callers, **self.timed.figures(), "cpu_ms_per_request": spent}


async def measure(seconds: float, litellm: Path | None, callers: Sequence[int] = CALLERS) -> dict[str, Any]:
    """The bare upstream, Assay and LiteLLM at each number of callers, in turn, on one machine in one run."""
    facts = machine()
    async with AsyncExitStack() as stack:
        url, pid = await stack.enter_async_context(_upstream())
        running = await stack.enter_async_context(_installation(url))
        targets = {
            "upstream": Target(_asked(f"{url}/v1", "none", MODEL), _cpu({"upstream": pid})),
            "assay": await _assay(running, pid),
        }
        peer = await _litellm(stack, url, pid, litellm)
        if isinstance(peer, Target):
            targets["litellm"] = peer
        found = [await _in_turn(targets, count, seconds) for count in callers]
        checked = await _checked(running)
    return {
        "results": [_beside_the_upstream(each) for each in found],
        "litellm": "measured" if isinstance(peer, Target) else peer,
        "ratios": [_ratios(each) for each in found if "litellm" in each],
        "aim": {"throughput": AIM_THROUGHPUT, "added_latency": AIM_ADDED},
        "checked": checked,
        "machine": facts,
    }


async def _in_turn(targets: Mapping[str, Target], callers: int, seconds: float) -> dict[str, Measured]:
    """All targets by turns: whatever else the machine does meanwhile, it does to each of them."""
    found = {name: Measured(callers, Timed.none(), Counter()) for name in targets}
    for _ in range(TURNS):
        for name, target in targets.items():
            before = target.cpu()
            found[name].timed += await timed(target.asked, callers, seconds / TURNS)
            found[name].cpu.update(Counter(target.cpu()) - Counter(before))
    return found


def _asked(url: str, key: str, model: str) -> Asked:
    return Asked(url, key, {"model": model, "messages": MESSAGES, "max_tokens": 16})


def _cpu(pids: dict[str, int]) -> Cpu:
    """Those processes, and the callers' own."""
    return lambda: {**cpu_seconds(pids), "callers": time.process_time()}


# --- the upstream ------------------------------------------------------------------------------------


@asynccontextmanager
async def _upstream() -> AsyncIterator[tuple[str, int]]:
    """`assay simulate-upstream` as a process of its own, which ends with this one."""
    tether = [sys.executable, "-I", "-S", str(TETHER), signal.SIGKILL.name, str(os.getpid()), "--"]
    command = [*tether, *ASSAY, "simulate-upstream", "--json"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout
    try:
        told = json.loads(await process.stdout.readuntil(b"}"))
        yield told["url"], told["pid"]
    finally:
        process.terminate()
        await process.wait()


# --- Assay -------------------------------------------------------------------------------------------


@asynccontextmanager
async def _installation(upstream: str) -> AsyncIterator[Installation]:
    servers = json.dumps({"upstream": {"url": f"{upstream}/v1"}})
    async with installation(0, ASSAY_MODELS__COMPATIBLE=servers) as running:
        yield running


async def _assay(running: Installation, upstream_pid: int) -> Target:
    await _command(
        running, "prices", "set", f"upstream:{MODEL}", "--tokens-in", "0.15", "--tokens-out", "0.60"
    )
    key = await _limited_key(running)
    names = ("api", "postgres", "valkey", "upstream", "callers")

    def cpu() -> dict[str, float]:
        found = running.cpu_seconds() | _cpu({"upstream": upstream_pid})()
        return {name: found[name] for name in names}

    return Target(_asked(f"{running.url}/v1", key, f"upstream:{MODEL}"), cpu)


async def _limited_key(running: Installation) -> str:
    """A key whose calls count against limits of every scope, and against rates; its secret."""
    key = {"name": "benchmark", "scopes": ["model"], "profile": PROFILE, "limit_usd": LIMIT_USD, **RATES}
    headers = {"authorization": f"Bearer {running.key}"}
    async with httpx.AsyncClient(base_url=running.url, headers=headers) as client:
        for method, path, content in (
            ("PATCH", "/v1/tenant", {"daily_limit_usd": LIMIT_USD, "call_limit_usd": "1", **RATES}),
            ("PUT", f"/v1/profiles/{PROFILE}", {"limit_usd": LIMIT_USD}),
            ("POST", "/v1/keys", key),
        ):
            made = (await client.request(method, path, json=content)).raise_for_status().json()
    secret: str = made["secret"]
    return secret


async def _checked(running: Installation) -> dict[str, Any]:
    """That everything was on: each call is in the journal, no hold is open, and the books add up."""
    cursor = await running.postgres.execute(LEFT_SQL)
    counts: dict[str, Any] = dict(await cursor.fetchall())
    return counts | {"ledger": json.loads(await _command(running, "ledger", "verify", "--json"))}


async def _command(running: Installation, *arguments: str) -> bytes:
    """What a command of this installation says."""
    process = await asyncio.create_subprocess_exec(
        *ASSAY,
        *arguments,
        env=os.environ | {"ASSAY_FOLDER": str(running.folder)},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    return output


# --- the peer ----------------------------------------------------------------------------------------


async def _litellm(
    stack: AsyncExitStack, upstream: str, upstream_pid: int, environment: Path | None
) -> Target | str:
    """The proxy, or the reason why there is none."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="assay-benchmark-")))
    try:
        proxy = await stack.enter_async_context(
            litellm_proxy(environment or folder / "litellm", folder, upstream, MODEL)
        )
    except NotInstallable as error:
        return f"skipped: {error}"
    return Target(_asked(proxy.url, proxy.key, MODEL), _cpu({"litellm": proxy.pid, "upstream": upstream_pid}))


# --- figures -----------------------------------------------------------------------------------------


def _added(measured: Measured, bare: Measured) -> dict[str, float]:
    return {
        f"added_p{percent}_ms": round(
            measured.timed.quantile_ms(percent) - bare.timed.quantile_ms(percent), 3
        )
        for percent in (50, 99)
    }


def _beside_the_upstream(found: Mapping[str, Measured]) -> dict[str, dict[str, Any]]:
    bare = found["upstream"]
    return {
        name: each.figures() | ({} if each is bare else _added(each, bare)) for name, each in found.items()
    }


def _ratios(found: Mapping[str, Measured]) -> dict[str, Any]:
    """Assay's throughput and added latency over the peer's."""
    bare, ours, theirs = found["upstream"], found["assay"], found["litellm"]
    added, others = _added(ours, bare), _added(theirs, bare)
    return {
        "callers": ours.callers,
        "throughput": round(ours.timed.calls_per_second / theirs.timed.calls_per_second, 2),
        **{name: round(added[name] / others[name], 3) for name in added},
    }


def show(figures: dict[str, Any], console: Console) -> None:
    """The figures for people."""
    table = Table("callers", "who", "requests/s", "p50 ms", "p99 ms", "added p50", "added p99", box=None)
    names = ("requests_per_second", "p50_ms", "p99_ms", "added_p50_ms", "added_p99_ms")
    for each in figures["results"]:
        for who, row in each.items():
            table.add_row(str(row["callers"]), who, *(str(row.get(name, "–")) for name in names))
    console.print(table)
    for each in figures["ratios"]:
        console.print(
            f"At {each['callers']} callers: {each['throughput']} times LiteLLM's throughput (aim "
            f"{AIM_THROUGHPUT:g}), {each['added_p50_ms']} of its added p50 (aim {AIM_ADDED:g})."
        )
    console.print(f"LiteLLM: {figures['litellm']}. Afterwards: {figures['checked']}.")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="for each of them at each number of callers"
    )
    parser.add_argument(
        "--litellm", type=Path, metavar="FOLDER", help="keeps the peer's environment there for the next run"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args()
    configure_logs(LogSettings(level="warning"), process="benchmark")
    figures = uvloop.run(measure(options.seconds, options.litellm))
    if options.json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    else:
        show(figures, Console())
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # temporalio's threads sometimes crash the interpreter while it is taken down (sdk-python #300)
    os._exit(code)
