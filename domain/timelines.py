"""Lines over time, in a few stretches that widen as a log grows."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from domain.logs import LEVELS, Level, Moment

MAX_MOMENTS = 60
#: each divides the next: what was counted in narrow stretches can be counted on in wider ones
_WIDTHS_SECONDS = (1, 5, 15, 30, 60, 300, 900, 1800, 3600, 10800, 21600, 43200, 86400)

#: the first moment that a datetime can be
_FIRST_SECOND = int(datetime.min.replace(tzinfo=UTC).timestamp())


class Timeline:
    """Counts lines by level in at most `MAX_MOMENTS` stretches of equal width, whatever order they come in.

    Only stretches that have lines are counted: a clock that began in 1970 and was set later makes two
    distant groups, not one stretch that holds everything.
    """

    def __init__(self) -> None:
        self._width_index = 0
        self._width_seconds = _WIDTHS_SECONDS[0]
        self._counts: dict[int, dict[Level | None, int]] = {}

    def add(self, at: datetime, level: Level | None = None, lines: int = 1) -> None:
        """Count lines of that moment; a time without zone is taken for UTC."""
        self.add_second(int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() // 1), level, lines)

    def add_second(self, second: int, level: Level | None = None, lines: int = 1) -> None:
        """Count lines of that second since 1970 in UTC."""
        stretch = second - second % self._width_seconds
        counts = self._counts.get(stretch)
        if counts is None:
            counts = self._counts[stretch] = {}
        counts[level] = counts.get(level, 0) + lines
        while len(self._counts) > MAX_MOMENTS:
            self._widen()

    def add_moments(self, moments: Iterable[Moment]) -> None:
        """Count the moments of another timeline, each from its beginning."""
        for moment in moments:
            at = datetime.fromisoformat(moment.at)
            for level, lines in moment.levels.items():
                self.add(at, level, lines)
            if unlevelled := moment.lines - sum(moment.levels.values()):
                self.add(at, None, unlevelled)

    def moments(self) -> tuple[Moment, ...]:
        """The stretches that have lines, in order."""
        return tuple(_moment(start, self._counts[start]) for start in sorted(self._counts))

    @property
    def width_seconds(self) -> int:
        """How long each stretch is."""
        return self._width_seconds

    def _widen(self) -> None:
        self._width_index += 1
        if self._width_index < len(_WIDTHS_SECONDS):
            self._width_seconds = _WIDTHS_SECONDS[self._width_index]
        else:
            self._width_seconds *= 2
        narrow, self._counts = self._counts, {}
        for start, counts in narrow.items():
            wide = self._counts.setdefault(start - start % self._width_seconds, {})
            for level, lines in counts.items():
                wide[level] = wide.get(level, 0) + lines


def _moment(start: int, counts: Mapping[Level | None, int]) -> Moment:
    levels = {level: counts[level] for level in LEVELS if level in counts}
    at = datetime.fromtimestamp(max(start, _FIRST_SECOND), UTC)
    return Moment(at.isoformat(), sum(counts.values()), levels)
