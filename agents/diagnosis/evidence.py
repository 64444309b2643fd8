"""Evidence checked against the lines themselves: what is not there proves nothing (X30)."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from agents.diagnosis.replies import Claim, Evidence
from agents.diagnosis.tools import Looking
from domain.diagnosis import BatchSummary, Finding
from domain.logs import Quote

#: a shorter stretch of a longer line is anywhere
MIN_TEXT_LENGTH = 8


def one_line(text: str) -> str:
    """The text as prompts show it: without line breaks, spaces one at a time."""
    return " ".join(text.split())


def stands_in(text: str, line: str) -> bool:
    """Whether the text is the line, or a stretch of it long enough to mean this line."""
    quoted, whole = one_line(text), one_line(line)
    return bool(quoted) and (quoted == whole or (len(quoted) >= MIN_TEXT_LENGTH and quoted in whole))


@dataclass(frozen=True)
class Checked:
    """What is left of claims: findings with evidence that is there, and how many had none."""

    findings: tuple[Finding, ...]
    refused: int
    #: the quotes that are not there, of claims without any other
    missing: tuple[str, ...]


class EvidenceCheck:
    """Holds quotes against the summary's, which were made from lines, and else against the lines."""

    def __init__(self, summary: BatchSummary, looking: Looking) -> None:
        self._summary = summary
        self._looking = looking
        quotes = (each for anomaly in summary.anomalies for each in anomaly.quotes)
        templates = (each for template in summary.templates for each in template.quotes)
        self._known = {(each.file_id, each.member, each.line): each for each in (*templates, *quotes)}

    async def claims(self, claims: Iterable[Claim]) -> Checked:
        """The claims with evidence as findings; the others are refused."""
        findings: list[Finding] = []
        missing: list[str] = []
        refused = 0
        for claim in claims:
            evidence = [await self._found(each) for each in claim.evidence]
            if any(evidence):
                findings.append(self._finding(claim, tuple(each for each in evidence if each)))
            else:
                refused += 1
                missing += [f"{each.file} {each.line}" for each in claim.evidence] or ["none was given"]
        return Checked(tuple(findings), refused, tuple(missing))

    async def quote(self, quote: Quote) -> bool:
        """Whether the line is there as it is quoted."""
        line = await self._looking.line(quote.file_id, quote.member, quote.line)
        return line is not None and stands_in(quote.text, line.text)

    async def _found(self, evidence: Evidence) -> Quote | None:
        """The line as it stands in its file, if the quote does."""
        file_id = self._looking.names.file_id(evidence.file)
        if file_id is None or file_id not in self._looking.logs:
            return None
        known = self._known.get((file_id, evidence.member, evidence.line))
        line = known or await self._looking.line(file_id, evidence.member, evidence.line)
        return line if line is not None and stands_in(evidence.text, line.text) else None

    def _finding(self, claim: Claim, evidence: tuple[Quote, ...]) -> Finding:
        shown = {self._looking.logs[each.file_id].vehicle_id for each in evidence} - {""}
        codes = tuple(each.code for each in self._summary.anomalies if each.code in claim.anomaly_codes)
        having = vehicles_with(self._summary, codes)
        return Finding(
            cause_id=claim.cause,
            title=claim.title,
            explanation=claim.explanation,
            confidence=claim.confidence,
            anomaly_codes=codes,
            # named ones count where they have one of the anomalies
            vehicles=tuple(sorted(shown.union(having.intersection(claim.vehicles)))),
            recommendations=tuple(claim.recommendations),
            evidence=tuple(dict.fromkeys(evidence)),
            hazard=claim.hazard,
        )


def vehicles_with(summary: BatchSummary, codes: Collection[str]) -> set[str]:
    """The vehicles that have one of the anomalies."""
    named = {vehicle for each in summary.anomalies if each.code in codes for vehicle in each.vehicles}
    having = {each.vehicle_id for each in summary.vehicles if not set(codes).isdisjoint(each.anomaly_codes)}
    return {each for each in named | having if each}
