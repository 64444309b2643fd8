"""How grave a line is by its writer's word: the words of many kinds of loggers, and syslog's numbers."""

import re

from domain.logs import Level

_WORDS = {
    Level.FATAL: "FATAL CRITICAL CRIT ALERT EMERG EMERGENCY PANIC SEVERE FAILURE ASSERT F A 致命 严重",
    Level.ERROR: "ERROR ERR E 错误",
    Level.WARNING: "WARNING WARN W 警告",
    Level.INFO: "INFO INFORMATION NOTICE I 信息",
    Level.DEBUG: "DEBUG DBG FINE CONFIG D 调试",
    Level.TRACE: "TRACE VERBOSE FINER FINEST V 跟踪",
}
_LEVELS = {word: level for level, words in _WORDS.items() for word in words.split()}
#: pino's and bunyan's, as in `{"level":30}`
_NUMBERS = {
    10: Level.TRACE,
    20: Level.DEBUG,
    30: Level.INFO,
    40: Level.WARNING,
    50: Level.ERROR,
    60: Level.FATAL,
}
_NUMBERS_AS_TEXT = {str(number): level for number, level in _NUMBERS.items()}
#: of syslog, 0 to 7
_SEVERITIES = (
    *(Level.FATAL,) * 3,
    Level.ERROR,
    Level.WARNING,
    *(Level.INFO,) * 2,
    Level.DEBUG,
)

_LONG = "|".join(sorted((word for word in _LEVELS if len(word) > 1), key=len, reverse=True))
#: a level as loggers write it, in a group: a word in capitals, or in any case within brackets
LEVEL_PATTERN = rf"(?:({_LONG})(?![\w.=/])|[\[<(【]\s*((?i:{_LONG}|[FEWIDVA]))\s*[\]>)】])"
_AT_START = re.compile(rf"(?:[\w.\[\]/-]{{1,40}}:\s+)?(?:{LEVEL_PATTERN}|((?i:fatal|error|warning)):)")


def level_named(word: str | int | None) -> Level | None:
    """The level of a word or number, as a field `level` holds it; `None` for any other."""
    if isinstance(word, int):
        return _NUMBERS.get(word)
    if word is None:
        return None
    if (level := _LEVELS.get(word)) is not None:
        return level
    return _LEVELS.get(word.strip().upper()) or _NUMBERS_AS_TEXT.get(word)


def level_at_start(content: str) -> Level | None:
    """The level that a message begins with, such as `error: …`, `kernel: WARNING …`, `[错误] …`."""
    found = _AT_START.match(content)
    return None if found is None else _LEVELS[found[found.lastindex or 0].upper()]


def level_of_priority(priority: int) -> Level:
    """The level of a syslog priority, `<13>`."""
    return _SEVERITIES[priority & 7]
