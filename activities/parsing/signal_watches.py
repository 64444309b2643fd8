"""How rules of each kind are held against a log, line by line, and what they find."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from activities.parsing.dataflash import Record, error_named
from activities.parsing.signal_rules import Rule, State
from domain.logs import MAX_EXAMPLES, MAX_TEXT_LENGTH, LogLine, Quote, Signal

_UPTIME_YEAR = 1970
#: stretches that a detail tells of
_TOLD = 5


@dataclass
class Finding:
    """What broke one rule so far, with its worst lines."""

    rule: Rule
    code: str
    title: str
    count: int = 0
    value: float | None = None
    bound: float | None = None
    details: list[str] = field(default_factory=list)
    #: badness and line, the worst first
    worst: list[tuple[float, Quote]] = field(default_factory=list)

    def add(self, lines: Iterable[LogLine], badness: float = 0.0) -> None:
        """Count once, with these lines."""
        self.count += 1
        if len(self.worst) < MAX_EXAMPLES or badness > self.worst[-1][0]:
            self.worst += [(badness, _quote(line)) for line in lines]
            # stable: among equals the first stay
            self.worst.sort(key=lambda each: -each[0])
            del self.worst[MAX_EXAMPLES:]

    def signal(self) -> Signal:
        """The finding as the parsed log has it."""
        quotes = tuple(
            sorted((quote for _, quote in self.worst), key=lambda quote: (quote.member, quote.line))
        )
        return Signal(
            self.code, self.title, self.rule.level, self.count, self.value, self.bound, self.rule.unit,
            quotes, "; ".join(self.details),
        )  # fmt: skip


def _quote(line: LogLine) -> Quote:
    at = "" if line.at is None else line.at.isoformat()
    return Quote(line.number, line.text[:MAX_TEXT_LENGTH], member=line.member, at=at)


Found = Callable[..., Finding]


class Watch:
    """One rule as it is held against one member."""

    is_on_text = False
    #: one of these, in small letters, is in every line that is its concern; any line where there are none
    hints: tuple[str, ...] = ()

    def __init__(self, rule: Rule, found: Found, state: State) -> None:
        self._rule, self._found, self._state = rule, found, state

    def is_for(self, kind: str) -> bool:
        """Whether records of this kind are its concern."""
        return self._rule.kind in ("", kind)

    def take(self, line: LogLine, record: Record | None) -> None:
        """Look at a line, and its record where it has one."""

    def end(self) -> None:
        """Nothing follows."""

    def _meets(self, record: Record) -> bool:
        return all(self._state.meets(each, record) for each in self._rule.where)

    def _excess(self, value: float) -> tuple[float, float | None]:
        """How far a value is beyond the bound, not more than 0 where it is not, and the bound."""
        rule = self._rule
        if (above := self._state.bound(rule.above)) is not None:
            return value - above - rule.tolerated, above
        if (below := self._state.bound(rule.below)) is not None:
            return below - value - rule.tolerated, below
        return 0.0, None

    def _note(self, line: LogLine, value: float) -> None:
        excess, bound = self._excess(value)
        if excess > 0:
            finding = self._found(self._rule)
            if not finding.worst or excess > finding.worst[0][0]:
                finding.value, finding.bound = value, bound
            finding.add([line], excess)


class _Limit(Watch):
    def take(self, line: LogLine, record: Record | None) -> None:
        assert record is not None
        numbers = (self._state.number(value, record) for value in self._rule.values)
        known = [number for number in numbers if number is not None]
        if known and self._meets(record):
            self._note(line, max(known, key=lambda number: self._excess(number)[0]))


@dataclass
class _Run:
    """Records in a row, and sums over them."""

    first: LogLine
    last: LogLine
    met: int = 0
    count: int = 0
    total: float = 0.0
    beside: float = 0.0

    def add(self, line: LogLine, number: float, beside: float) -> None:
        """One record more."""
        self.last = line
        self.count += 1
        self.total += number
        self.beside += beside


class _Stretch(Watch):
    """Sums up a stretch of records; the one that ends it counts, too, as in ArduPilot's own analyser."""

    _run: _Run | None = None

    def take(self, line: LogLine, record: Record | None) -> None:
        assert record is not None
        number = self._state.number(self._rule.values[0], record)
        if number is None:
            return
        meets = self._meets(record)
        if meets and self._run is None:
            self._run = _Run(line, line)
        if self._run is not None:
            self._run.add(line, number, record.number(self._rule.beside) or 0.0)
            self._run.met += meets
            if not meets:
                self.end()

    def end(self) -> None:
        run, self._run = self._run, None
        if run is not None and run.met >= self._rule.records:
            self._judge(run)

    def _judge(self, run: _Run) -> None:
        mean = run.total / run.count
        excess, bound = self._excess(mean)
        if excess <= 0:
            return
        finding = self._found(self._rule)
        if not finding.count:
            # the first stretch is what the later ones follow from
            finding.value, finding.bound = mean, bound
        if len(finding.details) < _TOLD:
            finding.details.append(self._told(run, mean))
        finding.add((run.first, run.last), -finding.count)

    def _told(self, run: _Run, mean: float) -> str:
        rule = self._rule
        beside = f" at a mean {rule.beside} of {run.beside / run.count:.0f}" if rule.beside else ""
        return f"{mean:.2f} {rule.unit} on average{beside}, lines {run.first.number} to {run.last.number}"


class _Error(Watch):
    def take(self, line: LogLine, record: Record | None) -> None:
        assert record is not None
        name, title, is_over = error_named(record)
        if not is_over:
            finding = self._found(self._rule, f"{self._rule.code}_{name.lower()}", f"{name}: {title}")
            finding.add([line])


class _Gap(Watch):
    """A clock of records that should go forward in small steps."""

    _sign = 1.0

    def __init__(self, rule: Rule, found: Found, state: State) -> None:
        super().__init__(rule, found, state)
        #: by the kind of the records: each has a pace of its own
        self._last: dict[str, float] = {}

    def take(self, line: LogLine, record: Record | None) -> None:
        assert record is not None
        now = self._state.number(self._rule.values[0], record)
        if now is not None:
            self._note(line, (now - self._last.get(record.kind, now)) * self._sign)
            self._last[record.kind] = now


class _Reset(_Gap):
    _sign = -1.0


class _Back(Watch):
    """The time of lines going back: of those whose time counts from a start, or of the others."""

    is_on_text = True

    def __init__(self, rule: Rule, found: Found, state: State) -> None:
        super().__init__(rule, found, state)
        self._of_uptime = rule.by == "restart"
        self._last: datetime | None = None

    def take(self, line: LogLine, record: Record | None) -> None:
        at, last = line.at, self._last
        if at is None:
            return
        if last is not None and at < last and self._of_uptime == (last.year == at.year == _UPTIME_YEAR):
            self._note(line, (last - at).total_seconds())
        self._last = at


class _Ending(Watch):
    _begun = False
    _last: tuple[LogLine, float] | None = None

    def is_for(self, kind: str) -> bool:
        return kind in (self._rule.kind, "EV")

    def take(self, line: LogLine, record: Record | None) -> None:
        assert record is not None
        rule = self._rule
        assert rule.begun is not None
        assert rule.over is not None
        if record.kind != rule.kind:
            self._begun = self._state.meets(rule.begun, record) or (
                self._begun and not self._state.meets(rule.over, record)
            )
        elif (number := self._state.number(rule.values[0], record)) is not None:
            self._last = (line, number)

    def end(self) -> None:
        if self._begun and self._last is not None:
            self._note(*self._last)


class _Matching(Watch):
    is_on_text = True

    def __init__(self, rule: Rule, found: Found, state: State) -> None:
        super().__init__(rule, found, state)
        self._pattern = re.compile(rule.pattern)
        self._but_not = re.compile(rule.but_not) if rule.but_not else None
        self.hints = rule.hints

    def take(self, line: LogLine, record: Record | None) -> None:
        match = self._pattern.search(line.text)
        if match is None or (self._but_not is not None and self._but_not.search(line.text)):
            return
        if "value" in match.groupdict():
            self._note(line, float(match["value"]))
        else:
            self._found(self._rule).add([line])


#: by what a rule says of itself; `unwritten` needs no lines
WATCHES: Mapping[str, type[Watch]] = {
    "limit": _Limit,
    "stretch": _Stretch,
    "error": _Error,
    "gap": _Gap,
    "reset": _Reset,
    "restart": _Back,
    "clock": _Back,
    "ending": _Ending,
    "matching": _Matching,
}
