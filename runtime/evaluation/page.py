"""An evaluation as one printable page of HTML with its pictures inside."""

from pathlib import Path

from markupsafe import Markup

from api.charts import curve, grid, interval_bars
from api.html import environment
from runtime.evaluation import showing
from runtime.evaluation.measuring import Comparison, Evaluation

SHOWN_FURTHEST = 20


def evaluation_page(evaluation: Evaluation) -> str:
    """The page; every text of the set is escaped, and nothing is loaded from anywhere."""
    template = environment([Path(__file__).parent]).get_template("page.html")
    return template.render(
        evaluation=evaluation,
        showing=showing,
        figures=showing.figures(evaluation.overall),
        grounds=showing.grounds(evaluation.basis, len(evaluation.answers)),
        heat_map=_heat_map(evaluation),
        reliability=_reliability(evaluation),
        questions=_bars(evaluation.questions, "Agreement by question (QWK)"),
        criteria=_bars(evaluation.criteria, "Agreement by criterion (QWK)"),
        furthest=evaluation.furthest(SHOWN_FURTHEST),
    )


def _heat_map(evaluation: Evaluation) -> Markup:
    return grid(
        evaluation.table,
        evaluation.levels,
        evaluation.levels,
        title="Answers by the human's mark and the machine's",
        x_label="machine",
        y_label="human",
    )


def _reliability(evaluation: Evaluation) -> Markup:
    return curve(
        [(band.mean_confidence, band.exact) for band in evaluation.reliability],
        title="Share of answers at the human's level, by confidence",
        x_label="confidence",
        y_label="share at the same level",
        diagonal=True,
    )


def _bars(comparisons: tuple[Comparison, ...], title: str) -> Markup | None:
    """A point with its interval for each comparison that has one, the lowest first."""
    rows = [
        (each.label, _shown(qwk.value), _shown(qwk.low), _shown(qwk.high))
        for each in showing.lowest_first(comparisons)
        if (qwk := each.agreement.qwk) is not None
    ]
    return interval_bars(rows, title=title, low=min(0.0, *(row[2] for row in rows)), high=1) if rows else None


def _shown(number: float) -> float:
    """Rounded as it is printed: a hair below nothing would be drawn as -0."""
    return round(number, 2) + 0.0
