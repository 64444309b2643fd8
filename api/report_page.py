"""A report as a page of HTML, made to be read and printed by a teaching team."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

from jinja2 import Template
from markupsafe import Markup

from api.charts import histogram, share_bar
from api.html import environment
from api.money import format_usd
from domain.states import BATCH_MACHINE

#: a page is for reading; JSON and CSV have what it leaves out, and it says how much that is
MAX_QUEUE_ENTRIES = 100
MAX_CRITERIA = 20
MAX_SUBMISSIONS = 5_000
MAX_QUOTE_LENGTH = 600

#: what to do about a failure, by its code
REMEDIES: Mapping[str, str] = {
    "unreadable_submission": "Correct the file as its message says and hand it in again, in a new batch.",
    "prompt_too_long": "Shorten the answer, or grade with a model that reads more at once.",
    "budget_exhausted": "Raise the batch's limit, then grade these files again.",
    "model_unavailable": "The model did not answer in time. Grade these files again later.",
    "model_refused": "The model declines this text. Grade these by hand, or with another model.",
    "model_access_denied": "Check the model's key and permissions, then grade these files again.",
    "model_reply_invalid": "The model's answers broke the rubric's rules. Grade by hand or with another.",
    "assessment_invalid": "The marks broke the rubric's bounds and were not recorded. Grade these by hand.",
    "unknown_model": "Configure the model, or open a batch with one that is.",
}
REMEDY = "Hand these files in again, in a new batch; if they fail again, report the code and the batch's id."

_LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,4}")


def report_page(report: Mapping[str, Any], *, generated_at: datetime) -> str:
    """The whole page; every text of the report is escaped."""
    batch = report["batch"]
    return _template().render(
        report=report,
        batch=batch,
        title=batch["exam_title"] or batch["name"] or "Batch",
        content_language=_language(batch["language"]),
        maximum=max((each["max_score"] or 0.0 for each in report["submissions"]), default=0.0),
        final=batch["status"] in BATCH_MACHINE.final,
        generated_at=generated_at.astimezone(UTC).isoformat(),
        score_chart=_bins_chart(
            report["distribution"]["bins"], "Submissions by score, in per cent of the maximum"
        ),
        confidence_chart=_bins_chart(report["confidence"]["bins"], "Criteria by confidence, in per cent"),
        limits={
            "queue": MAX_QUEUE_ENTRIES,
            "criteria": MAX_CRITERIA,
            "submissions": MAX_SUBMISSIONS,
            "quote": MAX_QUOTE_LENGTH,
        },
    )


@cache
def _template() -> Template:
    made = environment()
    made.filters |= {
        "points": points,
        "percent": percent,
        "moment": moment,
        "duration": duration,
        "words": words,
        "dollars": _dollars,
        "mean": mean,
        "kinds": kinds,
        "remedy": lambda code: REMEDIES.get(code, REMEDY),
    }
    made.globals["share_bar"] = share_bar
    return made.get_template("report.html")


def _bins_chart(bins: Iterable[Mapping[str, Any]], title: str) -> Markup:
    bars = [(f"{100 * each['from']:.0f}–{100 * each['to']:.0f}", each["count"]) for each in bins]
    return histogram(bars, title=title)


def _language(code: str | None) -> str:
    return code if code and _LANGUAGE.fullmatch(code) else "und"


def points(value: float | None) -> str:
    """Points with two decimals at most; a dash where there are none."""
    return "–" if value is None else f"{value:.2f}".rstrip("0").rstrip(".")


def mean(value: float | None) -> str:
    """A mean or a correlation, with two decimals."""
    return "–" if value is None else f"{value:.2f}"


def percent(share: float | None) -> str:
    """A share of one in whole per cent."""
    return "–" if share is None else f"{100 * share:.0f} %"


def moment(text: str | None) -> str:
    """A moment as it is read, in UTC."""
    if text is None:
        return "–"
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def duration(seconds: float | None) -> str:
    """A time in the two units that matter."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def words(name: str) -> str:
    """A code in the words of a sentence."""
    return name.replace("_", " ")


def kinds(reasons: Iterable[str]) -> str:
    """Reasons such as `q6: low_confidence:c3`, counted by their kind."""
    counts = Counter(reason.partition(": ")[2].partition(":")[0] for reason in reasons)
    return ", ".join(
        f"{words(kind)} × {count}" if count > 1 else words(kind) for kind, count in counts.items()
    )


def _dollars(nanodollars: int | None) -> str:
    return "not recorded" if nanodollars is None else f"${format_usd(nanodollars)}"
