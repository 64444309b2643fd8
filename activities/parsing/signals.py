"""Numeric signals: measured values of a log held against rules, which are data (`signals.yaml`)."""

from activities.parsing.dataflash import Records
from activities.parsing.signal_rules import Rule, State, rules
from activities.parsing.signal_watches import WATCHES, Finding, Found, Watch
from activities.parsing.source import Account
from domain.logs import MAX_SIGNALS, LogFormat, LogLine, Signal


class SignalCollector:
    """Takes the lines of one log as they are read, and tells in the end what broke a rule.

    Memory is bounded by the rules and by the kinds of records; lines are to be taken in their order.
    """

    def __init__(self, account: Account) -> None:
        self._account = account
        self._findings: dict[str, Finding] = {}
        self._member: _Member | None = None

    def take(self, line: LogLine) -> None:
        """Hold one line against the rules."""
        if self._member is None or self._member.name != line.member:
            self._end_member()
            self._member = _Member(line.member, self._account.reading, self._found)
        self._member.take(line)

    def signals(self) -> tuple[Signal, ...]:
        """What broke a rule, in the order of the rules' first breaches; to be asked at the end."""
        self._end_member()
        self._note_unwritten()
        return tuple(finding.signal() for finding in self._findings.values())

    def _found(self, rule: Rule, code: str = "", title: str = "") -> Finding:
        code = code or rule.code
        if code not in self._findings and len(self._findings) >= MAX_SIGNALS:
            return Finding(rule, code, rule.title)  # counted by nobody: more kinds than any log has
        return self._findings.setdefault(code, Finding(rule, code, title or rule.title))

    def _end_member(self) -> None:
        if self._member is not None:
            self._member.end()
            self._member = None

    def _note_unwritten(self) -> None:
        count = self._account.nul_characters
        for rule in rules()["any"]:
            if rule.by == "unwritten" and count:
                self._found(rule).count = count


class _Member:
    """The rules as they stand within one member."""

    def __init__(self, name: str, log_format: LogFormat, found: Found) -> None:
        self.name = name
        self._records = Records() if log_format is LogFormat.DATAFLASH else None
        self._state = State()
        chosen = (*rules().get(log_format, ()), *rules()["any"])
        self._watches = [WATCHES[rule.by](rule, found, self._state) for rule in chosen if rule.by in WATCHES]
        self._by_kind: dict[str, list[Watch]] = {}
        self._on_every_line = [each for each in self._watches if each.is_on_text and not each.hints]
        self._hinted = [each for each in self._watches if each.hints]
        self._hints = tuple({hint for watch in self._hinted for hint in watch.hints})

    def take(self, line: LogLine) -> None:
        """Hold the line against the rules of its kind."""
        for watch in self._on_every_line:
            watch.take(line, None)
        text = line.text.lower()
        # most lines hold no hint at all: a loop, for `any` of a generator takes three times as long
        for hint in self._hints:
            if hint in text:
                self._take_hinted(line, text)
                break
        record = None if self._records is None else self._records.read(line.text)
        if record is not None:
            self._state.note(record)
            for watch in self._for(record.kind):
                watch.take(line, record)

    def _take_hinted(self, line: LogLine, text: str) -> None:
        for watch in self._hinted:
            if any(hint in text for hint in watch.hints):
                watch.take(line, None)

    def end(self) -> None:
        """Nothing follows."""
        for watch in self._watches:
            watch.end()

    def _for(self, kind: str) -> "list[Watch]":
        if kind not in self._by_kind:
            self._by_kind[kind] = [
                each for each in self._watches if not each.is_on_text and each.is_for(kind)
            ]
        return self._by_kind[kind]
