"""Fields of structured logs found by the names that loggers give them: time, level, message."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

TIME_NAMES = (
    *("timestamp", "@timestamp", "datetime", "date_time", "time", "ts", "eventtime", "event_time", "asctime"),
    *("created", "created_at", "t", "时间", "date"),
)
#: of a log that has the day apart from the time
DAY_NAMES = ("date", "day", "日期")
LEVEL_NAMES = (
    "level",
    "severity",
    "loglevel",
    "log_level",
    "log.level",
    "levelname",
    "lvl",
    "priority",
    "级别",
)
MESSAGE_NAMES = (
    *("message", "msg", "content", "text", "log", "event", "body", "description", "detail", "details"),
    *("消息", "内容", "日志"),
)


@dataclass(frozen=True)
class FieldNames:
    """Which of a log's names hold what; empty where none does."""

    time: str = ""
    level: str = ""
    message: str = ""
    day: str = ""

    @classmethod
    def among(cls, names: tuple[str, ...]) -> "FieldNames":
        """The names by what they hold, whatever their case."""
        return _among(names)


# the lines of one log have few sets of names
@lru_cache(maxsize=256)
def _among(names: tuple[str, ...]) -> FieldNames:
    by_folded = {name.strip().casefold(): name for name in reversed(names)}
    kinds = (TIME_NAMES, LEVEL_NAMES, MESSAGE_NAMES, DAY_NAMES)
    return FieldNames(*(_first(by_folded, each) for each in kinds))


def _first(by_folded: Mapping[str, str], wanted: tuple[str, ...]) -> str:
    return next((by_folded[name] for name in wanted if name in by_folded), "")
