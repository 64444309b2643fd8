"""Plain text: a line's head, with its time, level and sender, told from its message."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from activities.parsing.levels import LEVEL_PATTERN, level_at_start, level_named
from activities.parsing.source import Source
from activities.parsing.splitting import lines_of
from activities.parsing.times import TIME_LAYOUTS, TimeLayout, Times
from domain.logs import Level, LogFormat, LogLine

_OPENING = r"[\s\[({<\"']{0,3}"
#: what stands between a time and a level: numbers, brackets, words with a sign in them, but no plain word
_HEADING = r"(?:(?:\d+|\[[^\]]{0,80}\]|\([^)]{0,80}\)|\w*[./@#$:-][\w./@#$:-]*+)[\s|,]++){0,4}?"
_ENDING = r"[\s:|,\]>)-]*+"
#: a logger's qualified name after the level, `dfs.DataNode$PacketResponder: `
_LOGGER = r"(?:\w[\w-]*+(?:[.$][\w$-]++)++:\s)?"
_PLAIN = rf"{_ENDING}(?:{_HEADING}{LEVEL_PATTERN}{_ENDING}{_LOGGER})?"
#: host, then program and process
_SYSLOG = r"\s(?:[\w.:-]++ [\w()./@-]{1,60}(?: [\d.]++)?(?:\[\d++\])?:\s)?"
_ANDROID = rf"(?:\s+\d+\s+\d+\s([VDIWEFA])\s[^:]{{0,80}}?\s*:\s|{_PLAIN})"
_GLOG = r"\s+\d+ [\w.-]++:\d+\] "
_AFTER = {"syslog": _SYSLOG, "android": _ANDROID, "glog": _GLOG}
#: what may stand before a time, where a log has it within its lines
_BEFORE = r"(?P<before>.{1,100}?)"
_WITHIN = ("iso", "iso_like", "bgl", "access", "dated", "syslog")
_COLOUR = re.compile(r"\x1b\[[\d;]*[A-Za-z]")


#: as long as no line begins with a time, so many are searched for one further in
_SEARCHED = 200


@dataclass(frozen=True)
class _Head:
    """How the lines of one log begin; groups other than the time's are its level's."""

    layout: TimeLayout
    pattern: re.Pattern[str]
    within: bool = False


def _head(layout: TimeLayout) -> _Head:
    opening = "([IWEF])" if layout.name == "glog" else _OPENING
    return _Head(layout, re.compile(rf"{opening}({layout.pattern}){_AFTER.get(layout.name, _PLAIN)}"))


def _head_within(layout: TimeLayout) -> _Head:
    rest = _AFTER.get(layout.name, _PLAIN)
    return _Head(layout, re.compile(rf"{_BEFORE}({layout.pattern}){rest}"), within=True)


_HEADS = tuple(map(_head, TIME_LAYOUTS))
_HEADS_WITHIN = tuple(_head_within(layout) for layout in TIME_LAYOUTS if layout.name in _WITHIN)


class TextReader:
    """Lines of text, of whatever layout."""

    format = LogFormat.TEXT

    def recognises(self, source: Source) -> bool:
        """Any text is a log."""
        return True

    def read(self, source: Source) -> Iterator[LogLine]:
        """The member's lines."""
        split, account, member = Heads(source.written_at).split, source.account, source.member
        for number, text in lines_of(source):
            account.lines += 1
            at, level, content = split(text)
            yield LogLine(number, text, content, at, level, member)


class Heads:
    """Tells the heads of one log's lines from their messages; the layout found last is tried first."""

    def __init__(self, written_at: datetime) -> None:
        self._times = Times(written_at)
        self._heads = list(_HEADS)
        self._searches = _SEARCHED
        self._match = _HEADS[0].pattern.match
        self._head = _HEADS[0]

    def split(self, line: str) -> tuple[datetime | None, Level | None, str]:
        """Time, level and message of a line; colours are left out of the message."""
        text = _COLOUR.sub("", line) if "\x1b" in line else line
        found = self._match(text) or self._search(text)
        if found is None:
            return None, level_at_start(text), text.strip()
        return self._told_apart(found, text)

    def _told_apart(self, found: re.Match[str], text: str) -> tuple[datetime | None, Level | None, str]:
        head, groups = self._head, found.groups()
        content = text[found.end() :].rstrip()
        name = head.layout.name
        if name == "glog":
            return self._times.read(head.layout, groups[1]), level_named(groups[0]), content
        if head.within:
            return self._within(found, content)
        level = level_named(found[found.lastindex]) if found.lastindex > 1 else level_at_start(content)
        return self._times.read(head.layout, groups[0]), level, content

    def _search(self, text: str) -> re.Match[str] | None:
        """The first layout that the line has; it is tried first from now on."""
        for head in self._heads:
            if found := head.pattern.match(text):
                self._settle(head)
                return found
        if self._searches:
            self._searches -= 1
            ...
        return None
