"""Plain text: a line's head, with its time, level and sender, told from its message."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from activities.parsing.levels import LEVEL_PATTERN, level_at_start, level_named, level_of_priority
from activities.parsing.source import Source
from activities.parsing.splitting import is_binary, lines_of
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
#: so many lines are searched for a time further in, as long as none begins with one
_SEARCHED = 200
#: layouts that are looked for further in
_WITHIN = ("iso", "iso_like", "bgl", "access", "dated", "syslog")
#: of syslog, `<34>1 `
_PRIORITY = re.compile(r"<(\d{1,3})>(?:\d )?")
_COLOUR = re.compile(r"\x1b\[[\d;]*[A-Za-z]")


@dataclass(frozen=True)
class _Head:
    """How the lines of one log begin: what stands before the time, the time, and after it the level."""

    layout: TimeLayout
    pattern: re.Pattern[str]
    #: the group of the time; the first is what stands before it where this is the second
    time: int = 1


def _head(layout: TimeLayout) -> _Head:
    after = _AFTER.get(layout.name, _PLAIN)
    if layout.name == "glog":
        return _Head(layout, re.compile(rf"([IWEF])({layout.pattern}){after}"), time=2)
    return _Head(layout, re.compile(rf"{_OPENING}({layout.pattern}){after}"))


def _head_within(layout: TimeLayout) -> _Head:
    return _Head(
        layout, re.compile(rf"(.{{1,100}}?)({layout.pattern}){_AFTER.get(layout.name, _PLAIN)}"), time=2
    )


_HEADS = tuple(map(_head, TIME_LAYOUTS))
_HEADS_WITHIN = tuple(_head_within(layout) for layout in TIME_LAYOUTS if layout.name in _WITHIN)


class TextReader:
    """Lines of text, of whatever layout."""

    format = LogFormat.TEXT

    def recognises(self, source: Source) -> bool:
        """Whatever is text is a log."""
        return not is_binary(source.head)

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
        self._head = _HEADS[0]
        # nothing matches before the first layout is found
        self._match = re.compile(r"(?!)").match
        self._searches = _SEARCHED

    def split(self, line: str) -> tuple[datetime | None, Level | None, str]:
        """Time, level and message of a line; the message is without terminals' colours."""
        text = _COLOUR.sub("", line) if "\x1b" in line else line
        found = self._match(text) or self._search(text)
        if found is None:
            return None, level_at_start(text), text.strip()
        content = text[found.end() :].rstrip()
        at = self._times.read(self._head.layout, found[self._head.time])
        if found.lastindex != self._head.time:
            return at, level_named(found[found.lastindex or 0]), content
        if self._head.time == 1:
            return at, level_at_start(content), content
        return at, *self._with_before(found[1], content)

    def _with_before(self, before: str, content: str) -> tuple[Level | None, str]:
        """The level before the time; what else stands there belongs to the message."""
        level = level_named(before) or level_at_start(before) or _level_of_priority(before)
        return level or level_at_start(content), content if level else before.lstrip() + content

    def _search(self, text: str) -> re.Match[str] | None:
        """The first layout that the line has; it is tried first from now on."""
        for head in self._heads:
            if found := head.pattern.match(text):
                self._settle(head)
                return found
        return self._search_within(text) if self._searches else None

    def _settle(self, head: _Head) -> None:
        self._head, self._match = head, head.pattern.match
        self._heads.remove(head)
        self._heads.insert(0, head)
        self._searches = 0

    def _search_within(self, text: str) -> re.Match[str] | None:
        self._searches -= 1
        for head in _HEADS_WITHIN:
            if found := head.pattern.match(text):
                self._heads.append(head)
                self._settle(head)
                return found
        return None


def _level_of_priority(before: str) -> Level | None:
    found = _PRIORITY.fullmatch(before)
    return None if found is None else level_of_priority(int(found[1]))
