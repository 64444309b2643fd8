"""Logs of a JSON object a line, as structured loggers write them."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import orjson

from activities.parsing.fields import FieldNames
from activities.parsing.levels import level_at_start, level_named
from activities.parsing.source import Source
from activities.parsing.splitting import first_lines, lines_of
from activities.parsing.times import Times
from domain.logs import Level, LogFormat, LogLine


class JsonLinesReader:
    """JSON objects, each in a line; the message is followed by the fields that have no name of their own."""

    format = LogFormat.JSON_LINES

    def recognises(self, source: Source) -> bool:
        """The first lines are JSON objects, most of them."""
        lines = first_lines(source.head)
        return bool(lines) and sum(_object(line) is not None for line in lines) * 2 > len(lines)

    def read(self, source: Source) -> Iterator[LogLine]:
        """The member's lines; one that is no JSON object is a line of text."""
        times, account = Times(source.written_at), source.account
        for number, text in lines_of(source):
            account.lines += 1
            values = _object(text)
            if values is None:
                yield LogLine(number, text, text.strip(), None, level_at_start(text), source.member)
            else:
                yield LogLine(number, text, *_told_apart(values, times), source.member)


def _object(line: str) -> dict[str, Any] | None:
    if not line.lstrip().startswith("{"):
        return None
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _told_apart(values: dict[str, Any], times: Times) -> tuple[str, datetime | None, Level | None]:
    names = FieldNames.among(tuple(values))
    at = times.in_field(values.pop(names.time, None)) if names.time else None
    level = level_named(_word(values.pop(names.level, None)))
    message = _shown(values.pop(names.message, ""))
    rest = " ".join(f"{name}={_shown(value)}" for name, value in values.items())
    content = f"{message} {rest}".strip().replace("\0", "")
    return content, at, level or level_at_start(content)


def _word(value: object) -> str | int | None:
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None


def _shown(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
