"""Lines over time in few stretches, the same in any order."""

from datetime import UTC, datetime, timedelta, timezone
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from domain.logs import Level, Moment
from domain.timelines import MAX_MOMENTS, Timeline

START = datetime(2026, 1, 12, 8, tzinfo=UTC)
LINES = st.lists(
    st.tuples(
        st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=8))])),
        st.sampled_from([Level.ERROR, None]),
    ),
    max_size=90,
)


@settings(max_examples=40)
@given(lines=LINES, random=st.randoms(use_true_random=False))
def test_any_order_gives_the_same_stretches_with_every_line(
    lines: list[tuple[datetime, Level | None]], random: Random
) -> None:
    first, second, joined = Timeline(), Timeline(), Timeline()
    for each in lines:
        first.add(*each)
    random.shuffle(lines)
    for each in lines:
        second.add(*each)
    joined.add_moments(first.moments())
    assert first.moments() == second.moments() == joined.moments()
    assert len(first.moments()) <= MAX_MOMENTS
    assert sum(each.lines for each in first.moments()) == len(lines)


def test_stretches_are_as_narrow_as_may_be_and_none_is_empty() -> None:
    timeline = Timeline()
    for second in range(240):
        timeline.add(START + timedelta(seconds=second), Level.ERROR if second == 61 else None)
    # a clock that was not set yet
    timeline.add(datetime(1970, 1, 1, tzinfo=UTC), None)
    moments = timeline.moments()
    assert timeline.width_seconds == 5
    assert moments[0].at == "1970-01-01T00:00:00+00:00"
    assert [each for each in moments if each.levels] == [
        Moment("2026-01-12T08:01:00+00:00", 5, {Level.ERROR: 1})
    ]
