"""What a diagnosis comes to: verdict, risk, what is left unexplained, and an earlier one said again."""

from collections.abc import Sequence
from dataclasses import replace

from agents.diagnosis.evidence import EvidenceCheck, vehicles_with
from agents.diagnosis.replies import MAX_EVIDENCE
from agents.diagnosis.risk import risk_of
from agents.diagnosis.rules import is_significant
from agents.diagnosis.state import DiagnosisState, Spent
from domain.completion import EMBEDDED_MODEL
from domain.diagnosis import BatchSummary, Diagnosis, DiagnosisRun, Finding, Verdict

MAX_RECOMMENDATIONS = 15
#: with less than this share of its lines parsed, a batch is not called unremarkable
UNREMARKABLE_FROM = 0.9


def diagnosed(run: DiagnosisRun, state: DiagnosisState, findings: Sequence[Finding]) -> Diagnosis:
    """The diagnosis that checked findings make."""
    spent = state.get("spent") or Spent(tokens_in=0, tokens_out=0, cost_nanodollars=0)
    answered_by = state.get("answered_by", "")
    made = _put_together(run.summary, findings)
    told = "" if state.get("refused") else state.get("draft", {}).get("summary", "")
    same = state.get("draft", {}).get("verdict") == made.verdict
    return replace(
        made,
        # what the model says rests on all that it claimed
        summary=told if told and same else made.summary,
        refused_claims=state.get("refused", 0),
        model=run.model,
        rule_based=answered_by in ("", EMBEDDED_MODEL),
        tokens_in=spent["tokens_in"],
        tokens_out=spent["tokens_out"],
        cost_nanodollars=spent["cost_nanodollars"],
    )


async def repeated(
    run: DiagnosisRun, check: EvidenceCheck, batch_id: str, earlier: Diagnosis
) -> Diagnosis | None:
    """The earlier diagnosis of an equal case with this batch's evidence; `None` where a finding has none."""
    findings = [await _rebound(run.summary, check, each) for each in earlier.findings]
    if not all(findings):
        return None
    made = _put_together(run.summary, [each for each in findings if each])
    if made.verdict is not earlier.verdict:
        return None
    return replace(made, model=run.model, rule_based=earlier.rule_based, reused_from=batch_id)


async def _rebound(summary: BatchSummary, check: EvidenceCheck, finding: Finding) -> Finding | None:
    """The finding with quotes of its anomalies from this batch, each read again."""
    anomalies = [each for each in summary.anomalies if each.code in finding.anomaly_codes]
    quotes = list(dict.fromkeys(quote for each in anomalies for quote in each.quotes))
    evidence = [each for each in quotes[:MAX_EVIDENCE] if await check.quote(each)]
    if not evidence or len(anomalies) < len(finding.anomaly_codes):
        return None
    vehicles = sorted(vehicles_with(summary, finding.anomaly_codes))
    return replace(finding, evidence=tuple(evidence), vehicles=tuple(vehicles))


def _put_together(summary: BatchSummary, findings: Sequence[Finding]) -> Diagnosis:
    explained = {code for each in findings for code in each.anomaly_codes}
    left = [each for each in summary.anomalies if each.code not in explained]
    # what matters comes first
    unexplained = tuple(each.code for each in sorted(left, key=lambda each: not is_significant(each)))
    verdict = _verdict(summary, findings, explained)
    level, rule = risk_of(verdict, findings, summary, unexplained)
    advice = dict.fromkeys(advice for each in findings for advice in each.recommendations)
    return Diagnosis(
        verdict=verdict,
        summary=summed_up(summary, verdict, findings),
        risk_level=level,
        risk_rule=rule,
        findings=tuple(findings),
        recommendations=tuple(advice)[:MAX_RECOMMENDATIONS],
        unexplained=unexplained,
    )


def _verdict(summary: BatchSummary, findings: Sequence[Finding], explained: set[str]) -> Verdict:
    if findings:
        return Verdict.ROOT_CAUSE
    grave = any(is_significant(each) for each in summary.anomalies if each.code not in explained)
    if grave or summary.coverage < UNREMARKABLE_FROM:
        return Verdict.INSUFFICIENT_EVIDENCE
    return Verdict.UNREMARKABLE


def summed_up(summary: BatchSummary, verdict: Verdict, findings: Sequence[Finding]) -> str:
    """The diagnosis in a few sentences, put together from what was checked."""
    read = f"{_counted(summary.files, 'log', 'logs')} with {summary.lines:,} lines read"
    if summary.coverage < 1:
        read += f", {summary.coverage:.1%} of the lines parsed"
    if verdict is Verdict.UNREMARKABLE:
        return f"{read}; nothing stands out."
    if verdict is Verdict.INSUFFICIENT_EVIDENCE:
        count = max(summary.anomaly_count, len(summary.anomalies))
        return f"{read}; {_counted(count, 'anomaly', 'anomalies')}, and no line that shows a cause."
    causes = "; ".join(f"{each.title}{_where(each)}" for each in findings)
    return f"{read}. {_counted(len(findings), 'cause', 'causes')}: {causes}."


def _where(finding: Finding) -> str:
    return f" ({_counted(len(finding.vehicles), 'vehicle', 'vehicles')})" if finding.vehicles else ""


def _counted(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"
