"""Causes found by rules: what the embedded model says of a gathered batch, the same each time."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

import yaml

from domain.diagnosis import Anomaly, BatchSummary, Change, Finding, Hazard, MergedTemplate
from domain.gathering import MAX_TITLE_LENGTH, template_code
from domain.logs import Level, Quote

#: of one finding, over all its vehicles
MAX_EVIDENCE = 12
#: of a text, this much is searched: patterns take their time
_MAX_SEARCHED = 2_000
#: what a cause gains by what speaks for it beside its signs
_OWN_LINES, _CONSEQUENCE_SEEN, _NEW_SINCE_BASELINE = 0.05, 0.05, 0.04
_MOST_CERTAIN = 0.95

_GRAVE = frozenset({Level.FATAL, Level.ERROR, Level.WARNING})

Pattern = re.Pattern[str]


@dataclass(frozen=True)
class Cause:
    """One cause as `rules.yaml` states it."""

    id: str
    title: str
    hazard: Hazard
    confidence: float
    explanation: str
    recommendations: tuple[str, ...]
    signs: tuple[tuple[Pattern, ...], ...]
    unless: tuple[Pattern, ...] = ()
    requires: tuple[Pattern, ...] = ()
    excludes: tuple[Pattern, ...] = ()
    follows: tuple[str, ...] = ()
    part_of: tuple[str, ...] = ()
    look_for: tuple[str, ...] = ()
    generic: bool = False
    only_with: bool = False
    #: lines of a template that are a sign where there is no baseline; 0 for never
    alone_from: int = 0

    def shows_in(self, text: str) -> bool:
        """Whether the text is a sign of the cause."""
        return any(all(each.search(text) for each in sign) for sign in self.signs) and not any(
            each.search(text) for each in self.unless
        )


@dataclass(frozen=True)
class Rules:
    """All causes in the order in which they claim what was seen."""

    causes: tuple[Cause, ...]
    harmless: tuple[Pattern, ...]

    def __getitem__(self, cause_id: str) -> Cause:
        return next(each for each in self.causes if each.id == cause_id)


@cache
def load_rules() -> Rules:
    """The rules that come along."""
    document = yaml.safe_load((files("agents.diagnosis") / "rules.yaml").read_text(encoding="utf-8"))
    causes = [_cause(each) for each in document["causes"]]
    # what is generic takes what is left
    return Rules(tuple(sorted(causes, key=lambda each: each.generic)), _patterns(document["harmless"]))


def _cause(stated: Mapping[str, Any]) -> Cause:
    return Cause(
        id=stated["id"],
        title=stated["title"],
        hazard=Hazard(stated["hazard"]),
        confidence=stated["confidence"],
        explanation=stated["explanation"].strip(),
        recommendations=tuple(stated["recommendations"]),
        signs=tuple(_patterns(each) for each in stated["signs"]),
        unless=_patterns(stated.get("unless", ())),
        requires=_patterns(stated.get("requires", ())),
        excludes=_patterns(stated.get("excludes", ())),
        follows=tuple(stated.get("follows", ())),
        part_of=tuple(stated.get("part_of", ())),
        look_for=tuple(stated.get("look_for", ())),
        generic=stated.get("generic", False),
        only_with=stated.get("only_with", False),
        alone_from=stated.get("alone_from", 0),
    )


def _patterns(texts: Iterable[str]) -> tuple[Pattern, ...]:
    return tuple(re.compile(each, re.IGNORECASE) for each in texts)


# --- what was seen -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sighting:
    """An anomaly as one subject has it: a vehicle, or a log without one."""

    anomaly: Anomaly
    #: the subject's own lines
    quotes: tuple[Quote, ...]
    template: str = ""

    @property
    def texts(self) -> list[str]:
        """Each text of it; another subject's lines speak only where this one has none to show."""
        lines = self.quotes or self.anomaly.quotes
        named = [self.anomaly.code, self.anomaly.title, self.template]
        return [each[:_MAX_SEARCHED] for each in (*named, *(quote.text for quote in lines))]

    @property
    def at(self) -> str:
        """When the subject first had it; empty where that is not known."""
        return min((each.at for each in self.quotes if each.at), default="")


@dataclass(frozen=True)
class Match:
    """A cause on one subject, with what shows it and what it brought about."""

    cause: Cause
    sightings: tuple[Sighting, ...]
    found: tuple[Quote, ...] = ()
    consequences: tuple["Match", ...] = ()

    @property
    def at(self) -> str:
        """When it was first there; empty where that is not known."""
        times = [*(each.at for each in self.sightings), *(each.at for each in self.found)]
        return min((each for each in times if each), default="")

    @property
    def codes(self) -> set[str]:
        """The anomalies that it explains."""
        own = {each.anomaly.code for each in self.sightings}
        return own.union(*(each.codes for each in self.consequences))

    @property
    def evidence(self) -> list[Quote]:
        """The subject's lines, those of the cause first; lines that are a sign by themselves lead."""
        lines = [quote for each in self.sightings for quote in each.quotes]
        telling = [each for each in (*lines, *self.found) if self.cause.shows_in(each.text)]
        worst = [each.quotes[0] for each in self.sightings if each.quotes]
        brought = [quote for each in self.consequences for quote in each.evidence[:1]]
        return list(dict.fromkeys([*telling[:1], *worst, *brought, *telling, *lines]))


class Scene:
    """A gathered batch, seen subject by subject."""

    def __init__(self, summary: BatchSummary, found: Sequence[Quote] = ()) -> None:
        self.summary = summary
        self.found = found
        self.vehicle_of = {each.file_id: each.vehicle_id for each in summary.logs}
        self._templates = {each.template_id: each.text for each in summary.templates}
        self._codes = {each.vehicle_id: each.anomaly_codes for each in summary.vehicles if each.vehicle_id}

    def subject_of(self, file_id: str) -> str:
        """The log's vehicle, or the log itself, marked, where it has none."""
        return self.vehicle_of.get(file_id, "") or f"file/{file_id}"

    @cached_property
    def sightings(self) -> dict[str, list[Sighting]]:
        """What each subject has, its own lines with it."""
        seen: dict[str, list[Sighting]] = {}
        for anomaly in filter(is_trouble, self.summary.anomalies):
            for subject in sorted(self._subjects(anomaly)):
                own = tuple(each for each in anomaly.quotes if self.subject_of(each.file_id) == subject)
                template = self._templates.get(anomaly.template_id, "")
                seen.setdefault(subject, []).append(Sighting(anomaly, own, template))
        return seen

    def texts(self, subject: str) -> list[str]:
        """All that is known of a subject, its ordinary templates included."""
        seen = [text for each in self.sightings.get(subject, ()) for text in each.texts]
        ordinary = [each.text for each in self.summary.templates if self._has(subject, each.by_vehicle)]
        return [*seen, *ordinary, *(each.text for each in self.found_on(subject))]

    def found_on(self, subject: str) -> list[Quote]:
        """The lines that were looked up in the subject's logs."""
        return [each for each in self.found if self.subject_of(each.file_id) == subject]

    def _subjects(self, anomaly: Anomaly) -> set[str]:
        files_ = {*anomaly.file_ids, *(each.file_id for each in anomaly.quotes if each.file_id)}
        having = {vehicle for vehicle, codes in self._codes.items() if anomaly.code in codes}
        return {
            *filter(None, anomaly.vehicles),
            *having,
            *(self.subject_of(file_id) for file_id in files_),
        }

    def _has(self, subject: str, by_vehicle: Mapping[str, int]) -> bool:
        return by_vehicle.get("" if subject.startswith("file/") else subject, 0) > 0


def is_trouble(anomaly: Anomaly) -> bool:
    """Whether an anomaly can be a sign at all: what is gone, or rarer than before, is none."""
    if anomaly.change is Change.RATE:
        return anomaly.rate > anomaly.baseline_rate
    return anomaly.change in (Change.NEW, Change.RULE)


def is_significant(anomaly: Anomaly) -> bool:
    """Whether an anomaly without an explanation keeps a batch from being unremarkable."""
    return is_trouble(anomaly) and (anomaly.level in _GRAVE or anomaly.change is Change.RULE)


def with_signs(summary: BatchSummary) -> BatchSummary:
    """The summary; without a baseline, templates that speak for themselves are anomalies, too."""
    if summary.baseline is not None:
        return summary
    known = {each.template_id for each in summary.anomalies} - {""}
    signs = [
        _as_anomaly(each)
        for each in summary.templates
        if each.template_id not in known and _speaks_for_itself(each)
    ]
    if not signs:
        return summary
    count = max(summary.anomaly_count, len(summary.anomalies)) + len(signs)
    return replace(summary, anomalies=(*summary.anomalies, *signs), anomaly_count=count)


def _speaks_for_itself(template: MergedTemplate) -> bool:
    texts = [each[:_MAX_SEARCHED] for each in (template.text, *(quote.text for quote in template.quotes))]
    rules = load_rules()
    return any(
        0 < cause.alone_from <= template.count and _shows(cause, texts, rules) for cause in rules.causes
    )


def _as_anomaly(template: MergedTemplate) -> Anomaly:
    return Anomaly(
        code=template_code(template.text),
        change=Change.RULE,
        title=template.text[:MAX_TITLE_LENGTH],
        score=float(template.count.bit_length()),
        count=template.count,
        level=template.level,
        template_id=template.template_id,
        files=template.files,
        file_ids=tuple(dict.fromkeys(each.file_id for each in template.quotes)),
        vehicles=tuple(filter(None, template.by_vehicle)),
        first_at=template.first_at,
        last_at=template.last_at,
        quotes=template.quotes,
    )


# --- from what was seen to causes ----------------------------------------------------------------


def causes_of(summary: BatchSummary, found: Sequence[Quote] = ()) -> list[Finding]:
    """The causes that the rules find, those on most vehicles first; the same for the same summary."""
    scene, rules = Scene(summary, found), load_rules()
    by_cause: dict[str, dict[str, Match]] = {}
    for subject in sorted(scene.sightings):
        for match in folded(matches(scene, subject, rules)):
            by_cause.setdefault(match.cause.id, {})[subject] = match
    findings = [finding(scene, by_subject) for by_subject in by_cause.values()]
    return sorted((each for each in findings if each.evidence), key=_weight)


def matches(scene: Scene, subject: str, rules: Rules) -> list[Match]:
    """The causes that show on one subject, each with the sightings that it claims."""
    claimed: set[str] = set()
    texts = scene.texts(subject)
    made: list[Match] = []
    for cause in rules.causes:
        seen = [
            each
            for each in scene.sightings[subject]
            if not (cause.generic and each.anomaly.code in claimed) and _shows(cause, each.texts, rules)
        ]
        if not seen or not _fits(cause, texts):
            continue
        claimed |= {each.anomaly.code for each in seen}
        found = [each for each in scene.found_on(subject) if _shows(cause, [each.text], rules)]
        made.append(Match(cause, tuple(seen), tuple(found)))
    return made


def folded(made: Sequence[Match]) -> list[Match]:
    """The matches without those that another one on the same subject brought about; it has them instead."""
    known = {each.cause.id: each for each in made}
    parents = {each.cause.id: _parent(each, known) for each in made}
    consequences: dict[str, list[Match]] = {}
    for each in made:
        if (root := _root(each.cause.id, parents)) != each.cause.id:
            consequences.setdefault(root, []).append(each)
    return [
        Match(each.cause, each.sightings, each.found, tuple(consequences.get(each.cause.id, ())))
        for each in made
        if parents[each.cause.id] is None and not each.cause.only_with
    ]


def _parent(match: Match, known: Mapping[str, Match]) -> str | None:
    """What brought it about: of several, what was there last before it."""
    earlier = [
        known[each]
        for each in match.cause.follows
        if each in known and not (match.at and known[each].at > match.at)
    ]
    if earlier:
        return max(earlier, key=lambda each: each.at).cause.id
    return next((each for each in match.cause.part_of if each in known), None)


def _root(cause_id: str, parents: Mapping[str, str | None]) -> str:
    # the rules have no circle: a test sees to it
    while (parent := parents[cause_id]) is not None:
        cause_id = parent
    return cause_id


def finding(scene: Scene, by_subject: Mapping[str, Match]) -> Finding:
    """One cause on all the subjects that have it."""
    matches_ = list(by_subject.values())
    cause = matches_[0].cause
    codes = set[str]().union(*(each.codes for each in matches_))
    return Finding(
        cause_id=cause.id,
        title=cause.title,
        explanation=cause.explanation,
        confidence=_confidence(matches_),
        # in the summary's order, which is by score
        anomaly_codes=tuple(each.code for each in scene.summary.anomalies if each.code in codes),
        vehicles=tuple(each for each in by_subject if not each.startswith("file/")),
        recommendations=cause.recommendations,
        evidence=tuple(_gathered([each.evidence for each in matches_])),
        hazard=cause.hazard,
    )


def _gathered(evidence: Sequence[Sequence[Quote]]) -> list[Quote]:
    """The first line of each subject, then the second of each, and so on."""
    longest = max(map(len, evidence))
    turns = (each[turn] for turn in range(longest) for each in evidence if turn < len(each))
    return list(dict.fromkeys(turns))[:MAX_EVIDENCE]


def _confidence(made: Sequence[Match]) -> float:
    sightings = [each for match in made for each in match.sightings]
    value = made[0].cause.confidence
    value += _OWN_LINES * all(match.evidence for match in made)
    value += _CONSEQUENCE_SEEN * any(match.consequences for match in made)
    value += _NEW_SINCE_BASELINE * any(each.anomaly.change is Change.NEW for each in sightings)
    return round(min(value, _MOST_CERTAIN), 2)


def _weight(each: Finding) -> tuple[int, int, float, str]:
    return (list(Hazard).index(each.hazard), -len(each.vehicles), -each.confidence, each.cause_id)


def _shows(cause: Cause, texts: Collection[str], rules: Rules) -> bool:
    return any(
        cause.shows_in(each) and not any(harmless.search(each) for harmless in rules.harmless)
        for each in texts
    )


def _fits(cause: Cause, texts: Sequence[str]) -> bool:
    return all(any(each.search(text) for text in texts) for each in cause.requires) and not any(
        each.search(text) for each in cause.excludes for text in texts
    )
