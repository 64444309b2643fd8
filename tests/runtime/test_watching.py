"""What a terminal shows of a batch: counts that stay true over reconnects, lines that stay one line."""

import io
from typing import Any

import pytest
from rich.console import Console

from runtime.grading import look_at, show_report
from runtime.watching import Tally, _bar


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
