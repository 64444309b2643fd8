"""`assay report`: which format is meant, and what the terminal shows."""

import io
from pathlib import Path

import pytest
import typer
from rich.console import Console

from runtime.cli import _report_format, _write
from runtime.grading import show_report
from tests.api.report_documents import a_report, bins


def asked(*names: str) -> dict[str, bool]:
    return {name: name in names for name in ("json", "csv", "html")}


@pytest.mark.parametrize(
    ("flags", "file", "chosen"),
    [
        ((), None, None),
        (("html",), None, "html"),
        ((), "report.HTML", "html"),
        ((), "marks.csv", "csv"),
        (("json",), "report.json", "json"),
        (("json",), "report.data", "json"),
    ],
)
def test_the_format_is_the_flags_or_the_files(
    flags: tuple[str, ...], file: str | None, chosen: str | None
) -> None:
    assert _report_format(asked(*flags), Path(file) if file else None) == chosen


@pytest.mark.parametrize(
    ("flags", "file"),
    [(("csv", "html"), None), (("csv",), "report.html"), ((), "report.pdf"), ((), "report")],
)
def test_what_is_not_one_format_is_refused(flags: tuple[str, ...], file: str | None) -> None:
    with pytest.raises(typer.BadParameter):
        _report_format(asked(*flags), Path(file) if file else None)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match=r"report\.html cannot be written: No such file"):
        _write(b"", tmp_path / "nowhere" / "report.html")


def test_the_terminal_shows_the_distribution_the_hardest_criteria_and_the_reasons() -> None:
    shown = io.StringIO()
    distribution = a_report()["distribution"] | {"bins": bins(t0=1, t9=800)}

    show_report(a_report(distribution=distribution), Console(file=shown, width=100))

    # one of eight hundred is still told from none
    assert "0 % ▁········█ 100 %" in shown.getvalue()
    assert "25%" in shown.getvalue()
    assert "说明双方确认初始序号。" in shown.getvalue()
    assert "2 submissions (low confidence 4 times in 2)" in shown.getvalue()
