"""How grave a diagnosis is, by rules that are data and whose words stand in the report."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from domain.diagnosis import BatchSummary, Finding, RiskLevel, Verdict
from domain.logs import LEVELS


def risk_of(
    verdict: Verdict, findings: Sequence[Finding], summary: BatchSummary, unexplained: Sequence[str]
) -> tuple[RiskLevel, str]:
    """The level, and the rule that gave it."""
    for rule in _rules():
        if rule["verdict"] == verdict and _holds(rule, findings, summary, unexplained):
            return RiskLevel(rule["level"]), rule["rule"]
    raise AssertionError("unreachable: the last rule of each verdict asks for nothing else")


@cache
def _rules() -> Sequence[Mapping[str, Any]]:
    document: list[Mapping[str, Any]] = yaml.safe_load(
        (files("agents.diagnosis") / "risk.yaml").read_text(encoding="utf-8")
    )
    return document


def _holds(
    rule: Mapping[str, Any], findings: Sequence[Finding], summary: BatchSummary, unexplained: Sequence[str]
) -> bool:
    if "hazards" in rule:
        least = rule.get("vehicles_from", 0.0)
        return any(each.hazard in rule["hazards"] and share(each, summary) >= least for each in findings)
    return "gravest" not in rule or _gravest(summary, unexplained) in rule["gravest"]


def share(finding: Finding, summary: BatchSummary) -> float:
    """The share of the batch's vehicles that have the cause; of its logs, where none is named."""
    if finding.vehicles:
        # a log that names none may be any vehicle's
        vehicles = sum(1 if each.vehicle_id else each.files for each in summary.vehicles)
        return len(finding.vehicles) / max(1, vehicles)
    codes = set(finding.anomaly_codes)
    files_ = max((each.files for each in summary.anomalies if each.code in codes), default=0)
    return files_ / max(1, summary.files)


def _gravest(summary: BatchSummary, codes: Sequence[str]) -> str | None:
    levels = [each.level for each in summary.anomalies if each.code in codes and each.level is not None]
    return min(levels, key=LEVELS.index) if levels else None
