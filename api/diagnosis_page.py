"""A diagnosis as a page of HTML, made to be read and printed by whoever answers for the vehicles."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

from jinja2 import Template
from markupsafe import Markup

from api.charts import horizontal_bars, spans, timeline
from api.html import environment
from api.money import format_usd
from api.report_page import duration, moment, percent, words
from domain.logs import Level
from domain.states import BATCH_MACHINE

#: a page is for reading; JSON and CSV have what it leaves out, and it says how much that is
MAX_ANOMALIES = 40
MAX_BARS = 20
MAX_TEMPLATES = 60
MAX_VEHICLES = 200
MAX_FILES = 200
MAX_QUOTE_LENGTH = 400

#: what to do about a log that failed, by its code
REMEDIES: Mapping[str, str] = {
    "unreadable_log": "Check the file: it is no log of a known format, damaged, or unpacks to too much.",
    "document_invalid": "Parse these files again; the worker that parsed them wrote what is no parsed log.",
    "cancelled": "Parse these files again.",
}
REMEDY = "Parse these files again; if they fail again, report the code and the batch's id."
_GRAVE = (Level.FATAL, Level.ERROR)


def diagnosis_page(report: Mapping[str, Any], *, generated_at: datetime) -> str:
    """The whole page; every text of the report is escaped."""
    batch, anomalies = report["batch"], report["anomalies"]
    return _template().render(
        report=report,
        batch=batch,
        diagnosis=report["diagnosis"],
        summary=report["summary"],
        title=batch["name"] or "Diagnosis",
        titles={each["code"]: each["title"] for each in anomalies},
        final=batch["status"] in BATCH_MACHINE.final,
        generated_at=generated_at.astimezone(UTC).isoformat(),
        anomaly_chart=_anomaly_chart(anomalies),
        timeline_chart=_timeline_chart(report["timeline"]),
        span_chart=_span_chart(anomalies),
        limits={
            "anomalies": MAX_ANOMALIES,
            "bars": MAX_BARS,
            "templates": MAX_TEMPLATES,
            "vehicles": MAX_VEHICLES,
            "files": MAX_FILES,
            "quote": MAX_QUOTE_LENGTH,
        },
    )


@cache
def _template() -> Template:
    made = environment()
    made.filters |= {
        "percent": percent,
        "coverage": coverage,
        "moment": lambda text: moment(text or None),
        "duration": duration,
        "words": words,
        "dollars": lambda nanodollars: f"${format_usd(nanodollars or 0)}",
        "number": number,
        "place": place,
        "remedy": lambda code: REMEDIES.get(code, REMEDY),
    }
    return made.get_template("diagnosis.html")


def number(value: float | None) -> str:
    """A number as it is read, with three significant digits where it has decimals; a dash for none."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"


def coverage(share: float | None) -> str:
    """A share of lines; what is not quite all is never shown as all."""
    if share is None or share == 1:
        return percent(share)
    return f"{min(100 * share, 99.99):.2f} %"


def place(quote: Mapping[str, Any]) -> str:
    """Where a line stands, as `file:line`, with the member of an archive between."""
    name = quote["name"] or quote["file_id"]
    return ":".join(str(each) for each in (name, quote["member"], quote["line"]) if each)


def _anomaly_chart(anomalies: Sequence[Mapping[str, Any]]) -> Markup:
    highest = max((each["score"] for each in anomalies), default=0.0)
    rows = [(f"{each['code']} {each['title']}", each["score"], highest) for each in anomalies[:MAX_BARS]]
    return horizontal_bars(rows, title="Anomaly codes by score")


def _timeline_chart(moments: Sequence[Mapping[str, Any]]) -> Markup:
    bars = [
        (moment(each["at"]), each["lines"], sum(each["levels"].get(level, 0) for level in _GRAVE))
        for each in moments
    ]
    return timeline(bars, title="Lines over time, errors and fatal ones marked")


def _span_chart(anomalies: Sequence[Mapping[str, Any]]) -> Markup:
    rows = [
        (
            f"{each['code']} {each['title']}",
            _seconds(each["first_at"]),
            _seconds(each["last_at"]),
            f"{moment(each['first_at'])} to {moment(each['last_at'])}",
        )
        for each in anomalies
        if each["first_at"] and each["last_at"]
    ]
    return spans(rows[:MAX_BARS], title="When each anomaly occurs, from its first line to its last")


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
