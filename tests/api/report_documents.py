"""Reports as the database makes them, with texts that no page and no spreadsheet may obey."""

from typing import Any

SCRIPT = "<script>alert(1)</script>"
QUOTES = "\" onload='x' `"
TURNED = "exam\u202etxt.exe"
LONG_WORD = "w" * 400
FOREIGN = "李雷：三次握手 שלום"


def bins(**counts: int) -> list[dict[str, Any]]:
    """Tenths with the counts given as `t0` to `t9`."""
    return [{"from": n / 10, "to": (n + 1) / 10, "count": counts.get(f"t{n}", 0)} for n in range(10)]


def criterion(**given: Any) -> dict[str, Any]:
    """What a criterion of the queue earned."""
    return {
        "criterion_id": "c1",
        "points": 0.5,
        "max_points": 2.0,
        "reason": SCRIPT,
        "quote": f"{SCRIPT}{QUOTES} {FOREIGN}",
        "confidence": 0.25,
        "cannot_assess": False,
        **given,
    }


def submission(name: str = "李雷.txt", **given: Any) -> dict[str, Any]:
    """One row of the report."""
    return {
        "submission_id": "0197c1de-3333-7000-8000-000000000000",
        "name": name,
        "state": "completed",
        "score": 1.5,
        "max_score": 4.0,
        "needs_review": True,
        "review_reasons": ["q1: low_confidence:c1", "q1: low_confidence:c2", "q1: suspected_injection"],
        "failure_code": None,
        "failure_message": None,
        "questions": {"q1": 1.5},
        **given,
    }


def queued(name: str = TURNED, **given: Any) -> dict[str, Any]:
    """One entry of the review queue."""
    question = {
        "question_id": "q1",
        "score": 1.5,
        "max_score": 4.0,
        "reasons": ["suspected_injection", "low_confidence:c1"],
        "advisory": True,
        "criteria": [criterion(), criterion(criterion_id="c2", quote="", cannot_assess=True)],
    }
    entry = {"submission_id": "s1", "name": name, "score": 1.5, "max_score": 4.0, "urgent": True}
    return entry | {"confidence": 0.25, "questions": [question], **given}


def a_report(**given: Any) -> dict[str, Any]:
    """A report of three files, one of which failed."""
    return {
        "batch": {
            "batch_id": "0197c1de-1111-7000-8000-000000000000",
            "tenant_id": "local",
            "name": QUOTES,
            "kind": "grading",
            "status": "partial",
            "model": "local",
            "generation": 1,
            "exam_id": "0197c1de-2222-7000-8000-000000000000",
            "exam_title": f"计算机网络 {SCRIPT}",
            "language": "zh",
            "rubric_version": 3,
            "created_at": "2026-01-12T08:00:00+00:00",
            "updated_at": "2026-01-12T09:02:05+00:00",
        },
        "counts": {"completed": 2, "failed": 1},
        "total_files": 3,
        "needs_review": 2,
        "advisory": True,
        "scores": {"graded": 2, "mean": 1.75, "median": 1.75, "lowest": 1.5, "highest": 2.0},
        "distribution": {
            "bins": bins(t3=1, t5=1),
            "standard_deviation": 0.354,
            "lower_quartile": 1.625,
            "upper_quartile": 1.875,
        },
        "questions": [
            {
                "question_id": "q1",
                "prompt": f"为什么 TCP 需要三次握手？{SCRIPT}{LONG_WORD}",
                "type": "essay",
                "graded": 2,
                "mean_score": 1.75,
                "median_score": 1.75,
                "max_score": 4.0,
                "full_share": 0.0,
                "zero_share": 0.5,
                "needs_review": 2,
                "discrimination": None,
                "advisory": True,
                "tokens_in": 12_345,
                "tokens_out": 678,
            }
        ],
        "criteria_hardest_first": [
            {
                "question_id": "q1",
                "criterion_id": "c1",
                "description": f"说明双方确认初始序号。{SCRIPT}",
                "graded": 2,
                "mean_points": 0.5,
                "max_points": 2.0,
                "mean_share": 0.25,
                "mean_confidence": 0.4,
                "cannot_assess": 1,
            }
        ],
        "confidence": {"criteria": 4, "mean": 0.4, "bins": bins(t2=2, t9=2)},
        "review_reasons": [
            {
                "kind": "low_confidence",
                "count": 4,
                "submissions": 2,
                "places": [{"question_id": "q1", "criterion_id": "c1", "count": 4}],
            }
        ],
        "review_queue": [queued(), queued(LONG_WORD, urgent=False)],
        "failures": [{"code": "unreadable_submission", "count": 1, "message": f"No answer. {SCRIPT}"}],
        "usage": {"tokens_in": 12_345, "tokens_out": 678, "cost_nanodollars": None},
        "timing": {
            "opened_at": "2026-01-12T08:00:00+00:00",
            "completed_at": "2026-01-12T09:02:05+00:00",
            "duration_seconds": 3725.0,
        },
        "submissions": [
            submission(),
            submission(TURNED, score=2.0, review_reasons=["q1: low_confidence:c1"]),
            submission(
                SCRIPT,
                state="failed",
                score=None,
                max_score=None,
                needs_review=False,
                review_reasons=[],
                failure_code="unreadable_submission",
                failure_message=f"No answer. {SCRIPT}",
                questions={},
            ),
        ],
        **given,
    }
