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
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run by its path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import httpx
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.callers import CallFailed, Target, Timed, timed
from benchmarks.figures import cpu_seconds, machine
from benchmarks.installation import Installation, installation
from benchmarks.litellm_proxy import NotInstallable, litellm_proxy
from runtime.processes import TETHER
from runtime.settings import LogSettings
from runtime.telemetry import configure_logs

AIM_THROUGHPUT, AIM_ADDED = 10.0, 0.2
CALLERS = (1, 8, 32)
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
class Measured:
    """A target at one number of callers, and the CPU seconds of each process meanwhile."""

    callers: int
    timed: Timed
    cpu: dict[str, float]

    def figures(self) -> dict[str, Any]:
        """For people and programs."""
        calls = self.timed.calls * 1.1  # the warm-up's too
        return {
            "callers": self.callers,
            **self.timed.figures(),
            "cpu_ms_per_request": {
                name: round(seconds * 1000 / calls, 3) for name, seconds in self.cpu.items()
            },
        }


async def measure(seconds: float, litellm: Path | None, callers: tuple[int, ...] = CALLERS) -> dict[str, Any]:
    """The bare upstream, Assay and LiteLLM at each number of callers, on one machine in one run."""
    facts = machine()
    async with _upstream() as (url, pid):
        bare = await _at_each(_target(f"{url}/v1", "none", MODEL), callers, seconds, _cpu({"upstream": pid}))
        assay, checked = await _assay(url, pid, callers, seconds)
        peer = await _litellm(url, pid, callers, seconds, litellm)
    return {
        "upstream": [each.figures() for each in bare],
        "assay": _beside(assay, bare),
        "checked": checked,
        "litellm": peer if isinstance(peer, str) else _beside(peer[0], bare),
        "litellm_version": None if isinstance(peer, str) else peer[1],
        "ratios": [] if isinstance(peer, str) else list(_ratios(bare, assay, peer[0])),
        "aim": {"throughput": AIM_THROUGHPUT, "added_latency": AIM_ADDED},
        "machine": facts,
    }


def _target(url: str, key: str, model: str) -> Target:
    return Target(url, key, {"model": model, "messages": MESSAGES, "max_tokens": 16})


def _cpu(pids: dict[str, int]) -> Cpu:
    """Those processes, and the callers' own."""
    return lambda: cpu_seconds({**pids, "callers": os.getpid()})


async def _at_each(target: Target, callers: tuple[int, ...], seconds: float, cpu: Cpu) -> list[Measured]:
    found = []
    for count in callers:
        before = cpu()
        result = await timed(target, count, seconds)
        after = cpu()
        found.append(Measured(count, result, {name: after[name] - before[name] for name in before}))
    return found


# --- the upstream ------------------------------------------------------------------------------------


@asynccontextmanager
async def _upstream() -> AsyncIterator[tuple[str, int]]:
    """`assay simulate-upstream` as a process of its own, which ends with this one."""
    tether = [sys.executable, "-I", "-S", str(TETHER), signal.SIGKILL.name, str(os.getpid()), "--"]
    command = [sys.executable, "-P", "-m", "runtime.cli", "simulate-upstream", "--json"]
    process = await asyncio.create_subprocess_exec(*tether, *command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout
    try:
        told = json.loads(await process.stdout.readuntil(b"}"))
        yield told["url"], told["pid"]
    finally:
        process.terminate()
        await process.wait()


# --- Assay -------------------------------------------------------------------------------------------


async def _assay(
    upstream: str, pid: int, callers: tuple[int, ...], seconds: float
) -> tuple[list[Measured], dict[str, Any]]:
    servers = json.dumps({"upstream": {"url": f"{upstream}/v1"}})
    async with installation(0, ASSAY_MODELS__COMPATIBLE=servers) as running:
        key = await _limited_key(running)
        await _state_price(running)

        def cpu() -> dict[str, float]:
            found = running.cpu_seconds() | _cpu({"upstream": pid})()
            names = ("api", "postgres", "valkey", "upstream", "callers")
            return {name: found[name] for name in names}

        target = _target(f"{running.url}/v1", key, f"upstream:{MODEL}")
        found = await _at_each(target, callers, seconds, cpu)
        return found, await _checked(running)


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


async def _state_price(running: Installation) -> None:
    command = ["prices", "set", f"upstream:{MODEL}", "--tokens-in", "0.15", "--tokens-out", "0.60"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "runtime.cli",
        *command,
        env=os.environ | {"ASSAY_FOLDER": str(running.folder)},
        stdout=asyncio.subprocess.DEVNULL,
    )
    if await process.wait() != 0:
        raise CallFailed("The price could not be stated.")


async def _checked(running: Installation) -> dict[str, Any]:
    """That everything was on: each call is in the journal, no hold is open, and the books add up."""
    cursor = await running.postgres.execute(LEFT_SQL)
    counts: dict[str, Any] = dict(await cursor.fetchall())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "runtime.cli", "ledger", "verify", "--json"),
        env=os.environ | {"ASSAY_FOLDER": str(running.folder)},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    return counts | {"ledger": json.loads(output)}


# --- the peer ----------------------------------------------------------------------------------------


async def _litellm(
    upstream: str, pid: int, callers: tuple[int, ...], seconds: float, environment: Path | None
) -> tuple[list[Measured], str] | str:
    """The proxy's figures and version, or the reason why there are none."""
    with tempfile.TemporaryDirectory(prefix="assay-benchmark-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        try:
            async with litellm_proxy(environment or folder / "litellm", folder, upstream, MODEL) as proxy:
                cpu = _cpu({"litellm": proxy.pid, "upstream": pid})
                target = _target(proxy.url, proxy.key, MODEL)
                return await _at_each(target, callers, seconds, cpu), proxy.version
        except NotInstallable as error:
            return f"skipped: {error}"


# --- figures -----------------------------------------------------------------------------------------


def _added(measured: Measured, bare: Measured) -> dict[str, float]:
    return {
        f"added_p{percent}_ms": round(
            measured.timed.quantile_ms(percent) - bare.timed.quantile_ms(percent), 3
        )
        for percent in (50, 99)
    }


def _beside(measured: list[Measured], bare: list[Measured]) -> list[dict[str, Any]]:
    return [each.figures() | _added(each, alone) for each, alone in zip(measured, bare, strict=True)]


def _ratios(bare: list[Measured], assay: list[Measured], peer: list[Measured]) -> Iterator[dict[str, Any]]:
    """Assay's throughput and added latency over the peer's."""
    for alone, ours, theirs in zip(bare, assay, peer, strict=True):
        added, others = _added(ours, alone), _added(theirs, alone)
        yield {
            "callers": ours.callers,
            "throughput": round(ours.timed.calls_per_second / theirs.timed.calls_per_second, 2),
            **{name: round(added[name] / others[name], 3) for name in added},
        }


def show(figures: dict[str, Any], console: Console) -> None:
    """The figures for people."""
    table = Table("callers", "who", "requests/s", "p50 ms", "p99 ms", "added p50", "added p99", box=None)
    for who in ("upstream", "assay", "litellm"):
        for each in figures[who] if isinstance(figures[who], list) else ():
            names = ("requests_per_second", "p50_ms", "p99_ms", "added_p50_ms", "added_p99_ms")
            table.add_row(str(each["callers"]), who, *(str(each.get(name, "–")) for name in names))
    console.print(table)
    if isinstance(figures["litellm"], str):
        console.print(f"LiteLLM {figures['litellm']}.")
    for each in figures["ratios"]:
        console.print(
            f"At {each['callers']} callers: {each['throughput']} times LiteLLM's throughput (aim "
            f"{AIM_THROUGHPUT:g}), {each['added_p50_ms']} of its added p50 (aim {AIM_ADDED:g})."
        )
    console.print(f"Afterwards: {figures['checked']}.")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each at each number of callers")
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
