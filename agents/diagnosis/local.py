"""The embedded model's part in a diagnosis: rules, no key and no network, and labelled so."""

from collections.abc import Iterable, Mapping
from typing import Any

from agents.diagnosis.outcome import summed_up
from agents.diagnosis.rules import Match, Scene, causes_of, folded, is_significant, load_rules, matches
from domain.diagnosis import BatchSummary, Case, Finding, Purpose, Verdict

MAX_LOOKS = 6


def answer_case(case: Case) -> Mapping[str, Any]:
    """The reply for that purpose, as plain data: the same for the same case."""
    if case.purpose is Purpose.SURVEY:
        codes = [each.code for each in case.summary.anomalies if is_significant(each)]
        return {"notes": [{"anomaly_codes": codes[:50], "note": ""}]}
    if case.purpose is Purpose.INVESTIGATE:
        looks = [] if case.turn else list(looks_for(case.summary))[:MAX_LOOKS]
        return {"thought": "", "look": looks}
    return conclusion(case)


def conclusion(case: Case) -> Mapping[str, Any]:
    """What the rules find, with the lines of the summary and those that were looked up."""
    findings = causes_of(case.summary, case.found)
    verdict = _verdict(case.summary, findings)
    return {
        "findings": [_claim(each) for each in findings[:10]],
        "verdict": verdict.value,
        "summary": f"By rules, without a large model: {summed_up(case.summary, verdict, findings)}",
    }


def looks_for(summary: BatchSummary) -> Iterable[Mapping[str, Any]]:
    """Searches for lines of those who have a cause and none of its lines in the summary."""
    scene, rules = Scene(summary), load_rules()
    for subject in sorted(scene.sightings):
        for match in folded(matches(scene, subject, rules)):
            if not match.evidence and match.cause.look_for and (file_id := _file_of(scene, subject, match)):
                yield {
                    "tool": "grep",
                    "file": file_id,
                    "member": "",
                    "terms": list(match.cause.look_for),
                    "line": 1,
                    "since": "",
                    "until": "",
                }


def _file_of(scene: Scene, subject: str, match: Match) -> str | None:
    """A log of the subject that has one of the anomalies, as far as that is known."""
    own = [each for each in scene.summary.logs if scene.subject_of(each.file_id) == subject]
    having = {file_id for each in match.sightings for file_id in each.anomaly.file_ids}
    ordered = sorted(own, key=lambda each: (each.file_id not in having, each.name))
    return ordered[0].file_id if ordered else None


def _verdict(summary: BatchSummary, findings: list[Finding]) -> Verdict:
    if findings:
        return Verdict.ROOT_CAUSE
    if any(is_significant(each) for each in summary.anomalies):
        return Verdict.INSUFFICIENT_EVIDENCE
    return Verdict.UNREMARKABLE


def _claim(finding: Finding) -> Mapping[str, Any]:
    return {
        "cause": finding.cause_id,
        "title": finding.title,
        "evidence": [
            {"file": each.file_id, "member": each.member, "line": each.line, "text": each.text}
            for each in finding.evidence
        ],
        "explanation": finding.explanation,
        "anomaly_codes": list(finding.anomaly_codes),
        "vehicles": list(finding.vehicles),
        "hazard": finding.hazard.value,
        "confidence": finding.confidence,
        "recommendations": list(finding.recommendations),
    }
