"""The parameters as the file that ships: small, readable, with what made them."""

from collections.abc import Mapping, Sequence
from typing import Any

from agents.local.features import NAMES
from agents.local.parameters import DOUBT_NAMES, Parameters
from benchmarks.local_grader.data import SOURCES, GradedQuestion

_DIGITS = 5


def to_document(
    parameters: Parameters, fitted_on: Sequence[GradedQuestion], figures: Mapping[str, Any], date: str
) -> dict[str, Any]:
    """The parameters as JSON data, as `agents.local.parameters` reads them."""
    columns = zip(NAMES, parameters.means, parameters.scales, parameters.weights, strict=True)
    return {
        "written_by": "python -m benchmarks.local_grader fit",
        "date": date,
        "data": [_source(name, fitted_on) for name in sorted({each.source for each in fitted_on})],
        "cross_validated": figures,
        "features": {
            name: {"mean": _short(mean), "scale": _short(scale), "weight": _short(weight)}
            for name, mean, scale, weight in columns
        },
        "intercept": _short(parameters.intercept),
        "kernel": vars(parameters.kernel),
        "spread": vars(parameters.spread),
        "doubt": {
            "weights": dict(zip(DOUBT_NAMES, map(_short, parameters.doubt.weights), strict=True)),
            "threshold": _short(parameters.doubt.threshold),
            "scale": _short(parameters.doubt.scale),
        },
        "fitted_prompts": sorted(parameters.prompts),
    }


def _source(name: str, fitted_on: Sequence[GradedQuestion]) -> dict[str, Any]:
    source = next(each for each in SOURCES if each.name == name)
    questions = [each for each in fitted_on if each.source == name]
    return {
        "name": name,
        "origin": source.origin,
        "licence": source.licence,
        "questions": len(questions),
        "answers": sum(len(each.answers) for each in questions),
    }


def _short(value: float) -> float:
    return round(float(value), _DIGITS)
