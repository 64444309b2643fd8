"""A batch of logs under chaos: workers of all kinds and parsers killed, Valkey flushed, Postgres cut off.

The seed is printed; `CHAOS_SEED=… make chaos` does the same things in the same order again.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from rich.table import Table

from domain.states import BATCH_MACHINE, FILE_MACHINE
from runtime.client import ApiClient
from tests.river.chaos import AIM_SECONDS, TIMEOUT_SECONDS, Chaos, SecondWorker, rows
from tests.river.fleet import FAULTS, Fleet
from tests.river.installation import Up, patiently, until, wait_ended
from tests.river.test_chaos import seed

MOVES_SQL = """
SELECT file_id, data ->> 'to' AS state FROM progress_events
WHERE batch_id = %s AND file_id IS NOT NULL AND event_type = 'StatusChanged'
"""
KINDS_SQL = (
    "SELECT event_type AS kind, count(*) AS number FROM progress_events WHERE batch_id = %s GROUP BY kind"
)
SUMMARY_SQL = "SELECT document FROM log_summaries WHERE batch_id = %s"
SAGAS_SQL = "SELECT final_status FROM saga_transactions WHERE saga_id LIKE %s"
EPOCH_SQL = "SELECT sum(epoch)::integer AS epochs FROM agent_threads WHERE batch_id = %s"


class LogChaos(Chaos):
    """What is done to an installation while it parses logs."""

    def __init__(self, up: Up, second: SecondWorker, calls_log: Path, seed: int) -> None:
        super().__init__(up, second, calls_log, seed)
        self.parsers_killed = 0
        self.deeds = {
            "kill -9 of the worker for parsing": lambda: self._kill("worker-parsing"),
            "kill -9 of the second worker for parsing": self._second.kill,
            "kill -9 of a parser": self._kill_a_parser,
            "kill -9 of the worker for agents": lambda: self._kill("worker-cognition"),
            "kill -9 of the worker for workflows": lambda: self._kill("worker-orchestration"),
            "Valkey flushed": self._flush,
            "connections to Postgres cut for 1 to 3 s": lambda: self._cut(self._seconds(1, 3)),
            "the worker for parsing stopped beyond its heartbeat": lambda: self._stop("worker-parsing"),
        }

    def _sample(self) -> None:
        """Nothing durable is paid for here: what is parsed twice is parsed alike."""

    def _kill_a_parser(self) -> None:
        """The first that is there, waited for: a kill that meets nobody proves nothing."""
        deadline = time.monotonic() + AIM_SECONDS
        while time.monotonic() < deadline and not self._over.wait(0.05):
            workers = [self._up.pids.get("worker-parsing"), self._second.process.pid]
            for parser in (each for pid in workers if pid is not None for each in parsers_of(pid)):
                with suppress(psutil.NoSuchProcess):
                    parser.kill()
                    self.parsers_killed += 1
                    return


def parsers_of(pid: int) -> Iterator[psutil.Process]:
    """The parsers of a worker."""
    with suppress(psutil.NoSuchProcess):
        for each in psutil.Process(pid).children():
            with suppress(psutil.NoSuchProcess):
                if "runtime.parser" in each.cmdline():
                    yield each


@pytest.mark.parametrize(
    ("files", "lines", "rounds"),
    [pytest.param(60, 20_000, 8, marks=[pytest.mark.long, pytest.mark.timeout(1200)], id="long")],
)
def test_chaos_ends_every_log_once_and_counts_every_line(
    tmp_path: Path, files: int, lines: int, rounds: int
) -> None:
    fleet = Fleet.of(tmp_path / "fleet", files, lines)
    settings = {
        "ASSAY_WORKER__HEARTBEAT_TIMEOUT_SECONDS": str(TIMEOUT_SECONDS),
        "ASSAY_WORKER__TASK_TIMEOUT_SECONDS": str(TIMEOUT_SECONDS),
    }
    chosen = seed()
    print(f"CHAOS_SEED={chosen}")  # noqa: T201  shown by -rP, and with a failure
    with (
        Up(tmp_path / "data", **settings) as up,
        up.client() as client,
        SecondWorker(up, ("runtime.cli", "worker", "--kind", "parsing"), **settings) as second,
    ):
        began = time.monotonic()
        batch_id = fleet.hand_in(client)
        chaos = LogChaos(up, second, tmp_path / "calls.jsonl", chosen)
        until(lambda: any(parsers_of(up.pids.get("worker-parsing", 0))), "parsing is under way", 60)
        chaos.reign(_has_ended(client, batch_id), rounds=rounds)
        assert wait_ended(client, batch_id, 300) == "partial"
        table = _table(chaos, title=f"{files} logs, seed {chosen}", seconds=time.monotonic() - began)
        Console(width=100).print(table)
        assert chaos.parsers_killed, "chaos met no parser"
        _assert_sound(up, client, batch_id, fleet)


def _has_ended(client: ApiClient, batch_id: str) -> Callable[[], bool]:
    return lambda: patiently(lambda: client.get(f"/v1/batches/{batch_id}"))["status"] in BATCH_MACHINE.final


def _assert_sound(up: Up, client: ApiClient, batch_id: str, fleet: Fleet) -> None:
    """Every log in exactly one final state, every line counted once, one diagnosis; the report says so."""
    url = up.addresses.postgres_url
    finals = Counter(
        (str(row["file_id"]), row["state"])
        for row in rows(url, MOVES_SQL, batch_id)
        if row["state"] in FILE_MACHINE.final
    )
    broken = len(fleet.files) - len(fleet.readable)
    assert len(finals) == finals.total() == len(fleet.files), "a log has ended twice, or not"
    assert Counter(state for _, state in finals) == {"completed": len(fleet.readable), "failed": broken}
    kinds = {row["kind"]: row["number"] for row in rows(url, KINDS_SQL, batch_id)}
    assert kinds["FileParsed"] == len(fleet.readable)
    assert (kinds["DiagnosisCompleted"], kinds.get("DiagnosisRetracted", 0)) == (1, 0)
    assert [row["final_status"] for row in rows(url, SAGAS_SQL, f"{batch_id}/%")] == ["completed"]

    (summary,) = (row["document"] for row in rows(url, SUMMARY_SQL, batch_id))
    assert (summary["files"], summary["lines"]) == (len(fleet.readable), fleet.total_lines)
    faulty = sum(1 for number in fleet.readable if number % 2)
    assert summary["levels"]["error"] == faulty * FAULTS
    report = patiently(lambda: client.report(batch_id))
    assert report["counts"]["completed"] == len(fleet.readable)
    assert report["counts"]["failed"] == broken
    assert report["total_files"] == len(fleet.files)
    files = patiently(lambda: list(client.files(batch_id)))
    assert {each["failure_code"] for each in files if each["state"] == "failed"} == {"unreadable_log"}
    assert sum(each["log"]["lines"] for each in files if each["log"]) == fleet.total_lines


def _table(chaos: LogChaos, *, title: str, seconds: float) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("what was done")
    table.add_column("number", justify="right")
    for name in sorted(chaos.deeds):
        table.add_row(name, str(chaos.done[name]))
    table.add_row("parsers that met their end", str(chaos.parsers_killed))
    table.add_row("seconds from hand-in to the end", f"{seconds:.0f}")
    return table
