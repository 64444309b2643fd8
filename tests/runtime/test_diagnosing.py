"""A diagnosis in a terminal: what stands in logs is shown, and steers nothing."""

import io
from typing import Any

from rich.console import Console

from runtime.diagnosing import show_diagnosis

HOSTILE = "panic \x1b]0;owned\x07\x1b[2J [red]x[/red] [/] \u202etxt.exe"


def a_report(text: str) -> dict[str, Any]:
    """A report in which every text of others is this one."""
    quote = {"file_id": "f", "name": text, "member": text, "line": 3, "text": text}
    anomaly = {"code": "T-1", "change": "new", "count": 1, "title": text, "vehicles": [text]}
    return {
        "batch": {"batch_id": "b", "name": text, "status": "partial"},
        "counts": {"completed": 1, "failed": 1},
        "summary": {"lines": 4, "parsed_lines": 3, "template_count": 1, "anomaly_count": 1},
        "baseline": {"batch_id": "c", "name": text, "lines": 1},
        "diagnosis": {
            "verdict": "root_cause",
            "risk_level": "high",
            "risk_rule": text,
            "summary": text,
            "rule_based": True,
            "reused_from": None,
            "unexplained": [text],
            "findings": [
                {
                    "title": text,
                    "explanation": text,
                    "confidence": 0.5,
                    "vehicles": [text],
                    "evidence": [quote],
                    "recommendations": [text],
                }
            ],
        },
        "anomalies": [anomaly],
        "files": [{"name": text, "state": "failed", "failure_message": text}],
    }


def test_a_log_cannot_steer_the_terminal() -> None:
    shown = io.StringIO()

    show_diagnosis(a_report(HOSTILE), Console(file=shown, width=200))

    assert not {"\x1b", "\x07", "\u202e"} & set(shown.getvalue())
    assert shown.getvalue().count("[red]x[/red] [/]") >= 12
