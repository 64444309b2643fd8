"""What a terminal shows of a batch: counts that stay true over reconnects, lines that stay one line."""

import io
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from rich.console import Console

from runtime.client import ApiClient
from runtime.grading import look_at, show_estimate, show_report
from runtime.watching import Tally, _bar, watch_batch
from tests.river.installation import run_assay


def snapshot(**counts: int) -> dict[str, Any]:
    return {"stage": "scattering", "counts": counts}


def moved(origin: str, target: str) -> dict[str, Any]:
    return {"machine": "file", "from": origin, "to": target}


def test_a_second_snapshot_comes_with_events_that_it_has_counted_and_is_not_counted() -> None:
    tally = Tally()
    tally.hear("snapshot", snapshot(queued=2, running=1))
    tally.hear("StatusChanged", moved("running", "completed"))
    tally.hear("snapshot", snapshot(queued=1, completed=2))
    tally.hear("StatusChanged", moved("queued", "running"))
    tally.hear("StatusChanged", moved("running", "completed"))
    assert (tally.counts["queued"], tally.counts["completed"], tally.finished, tally.total) == (1, 2, 2, 3)


def test_an_event_that_the_first_snapshot_has_counted_moves_nothing_that_is_not_there() -> None:
    tally = Tally()
    tally.hear("snapshot", snapshot(completed=3))
    tally.hear("StatusChanged", moved("running", "completed"))
    assert (tally.finished, tally.total) == (3, 3)


def test_the_rate_counts_only_what_was_finished_under_our_eyes() -> None:
    tally = Tally()
    tally.hear("snapshot", snapshot(completed=30, running=1))
    assert (tally.rate, tally.seconds_left) == (0, None)
    tally.hear("StatusChanged", moved("running", "completed"))
    assert tally.rate > 0
    assert tally.seconds_left == 0


@pytest.mark.parametrize("width", [72, 80, 120, 200])
def test_the_bar_keeps_to_one_line(width: int) -> None:
    shown = io.StringIO()
    tally = Tally()
    tally.hear("snapshot", snapshot(queued=300, running=50, failed=3, completed=47))
    for _ in range(20):
        tally.hear("StatusChanged", moved("running", "completed"))
    with _bar(Console(file=shown, width=width, force_terminal=False)) as bar:
        bar.add_task(tally.stage, total=400, completed=tally.finished, tally=tally)
    assert len(shown.getvalue().strip("\n").splitlines()) == 1
    assert "70/400 files" in shown.getvalue()
    assert "3 failed" in shown.getvalue()


def test_review_reasons_are_gathered_by_what_is_the_matter() -> None:
    reasons = ["q6: low_confidence:c3", "q6: low_confidence:c4", "q7: low_confidence:c1", "q7: quote_missing"]
    assert look_at(reasons) == "low confidence: q6 c3 c4, q7 c1; quote missing: q7"
    assert look_at([]) == ""


PAUSED = {"stage": "paused", "counts": {"paused": 2}, "pause": {"scope": "batch", "missing_usd": "0.25"}}
AGAIN = {"machine": "batch", "from": "paused", "to": "scattering"}


class FakeApi(BaseHTTPRequestHandler):
    """An API with one batch, which is paused; its event stream is cut once before it ends."""

    cut = True

    def do_GET(self) -> None:
        """The events, or the batch."""
        if not self.path.endswith("/events"):
            self._answer("application/json", json.dumps({"progress": {"stage": "cancelled", "counts": {}}}))
            return
        frames = (
            [("snapshot", PAUSED)]
            if self.server.cut
            else [  # type: ignore[attr-defined]  # set below
                ("snapshot", PAUSED),
                ("StatusChanged", AGAIN),
                ("end", {}),
            ]
        )
        self.server.cut = False  # type: ignore[attr-defined]  # set below
        text = "".join(f"event: {kind}\ndata: {json.dumps(event)}\n\n" for kind, event in frames)
        self._answer("text/event-stream", text)

    def do_POST(self) -> None:
        """Cancelled soon, by its workflow."""
        self._answer("application/json", json.dumps({"batch_id": "b1", "status": "paused"}))

    def _answer(self, kind: str, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Silent."""


@pytest.fixture
def paused_api() -> Iterator[str]:
    """The address of an API with a paused batch."""
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeApi) as server:
        server.cut = True  # type: ignore[attr-defined]  # read by the handler
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_batch_that_is_paused_already_says_so_once_with_the_way_out(paused_api: str) -> None:
    shown = io.StringIO()
    with ApiClient(paused_api, "key") as client:
        watch_batch(client, "b1", console=Console(file=shown, width=200, force_terminal=False))
    way_out = (
        "Paused: the limit of the batch refuses, $0.25 short for the next call. Raise it: assay limit b1 USD"
    )
    assert shown.getvalue().count(way_out) == 1


def test_cancelling_a_paused_batch_does_not_say_paused(paused_api: str, tmp_path: Path) -> None:
    access = {"ASSAY_API__URL": paused_api, "ASSAY_API__KEY": "key"}
    assert run_assay(tmp_path / "data", "cancel", "b1", **access).stdout == "b1: cancelling\n"


def test_one_long_name_leaves_the_other_columns_their_place() -> None:
    row = {"score": 1.0, "max_score": 2.0, "review_reasons": ["q6: quote_missing"], "failure_message": None}
    report = {
        "batch": {"exam_title": "T", "name": "", "status": "completed"},
        "counts": {"completed": 1},
        "scores": {"graded": 1, "mean": 1.0, "median": 1.0, "lowest": 1.0, "highest": 1.0},
        "advisory": False,
        "questions": [],
        "submissions": [{"name": "x" * 200, "state": "completed", **row}],
    }
    shown = io.StringIO()
    show_report(report, Console(file=shown, width=80))
    text = shown.getvalue()
    assert text.count("x") >= 200
    assert "completed  1 of 2" in text
    assert "quote missing" in text


def test_one_file_is_not_called_files() -> None:
    costs = {"calls": 1, "tokens_in": 1, "tokens_out": 1, "cost_est_usd": "0.00"}
    shown = io.StringIO()
    show_estimate({"files": 1, "model": "local", "likely": costs, "most": costs}, Console(file=shown))
    assert "1 file by local" in shown.getvalue()


def test_what_has_failed_is_shown_first_even_where_rows_are_few() -> None:
    row = {"score": 1.0, "max_score": 2.0, "review_reasons": [], "failure_message": None}
    submissions = [{"name": f"s{n}.txt", "state": "completed", **row} for n in range(5)]
    submissions[4] |= {"state": "failed", "score": None, "failure_message": "Not [text]."}
    report = {
        "batch": {"exam_title": "T", "name": "", "status": "partial"},
        "counts": {"completed": 4, "failed": 1},
        "scores": {"graded": 4, "mean": 1.0, "median": 1.0, "lowest": 1.0, "highest": 1.0},
        "advisory": False,
        "questions": [],
        "submissions": submissions,
    }
    shown = io.StringIO()
    show_report(report, Console(file=shown, width=80), rows=2)
    text = shown.getvalue()
    assert "s4.txt" in text
    assert "Not [text]." in text
    assert "s1.txt" not in text
    assert "… and 3 more." in text
