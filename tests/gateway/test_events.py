"""Server-sent events, in whatever pieces and with whatever line ends they come."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.events import MAX_EVENT_BYTES, Event, EventReader, TooManyEvents

LINE = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=12)
EVENT = st.tuples(st.sampled_from(["", "error"]), st.lists(LINE, min_size=1, max_size=3))
END = st.sampled_from(["\n", "\r\n", "\r"])
#: lines that tell nothing
NOISE = st.sampled_from([": ping", ":", "id: 7", "retry: 10", "unknown", "\ufeffdata"])


def read(reader: EventReader, pieces: list[bytes]) -> list[Event]:
    return [event for piece in pieces for event in reader.feed(piece)] + list(reader.end())


@given(st.lists(EVENT, max_size=4), END, NOISE, st.lists(st.floats(0, 1), max_size=8))
def test_events_are_the_same_however_they_are_cut(events, end, noise, where):
    lines = []
    for name, texts in events:
        lines += [f"event: {name}"] if name else []
        lines += [f"data: {text}" for text in texts] + [noise, ""]
    stream = "".join(line + end for line in lines).encode()
    cuts = sorted(int(each * len(stream)) for each in where)
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    expected = [Event(name, "\n".join(texts).encode()) for name, texts in events]
    assert read(EventReader(1_000_000), pieces) == expected


def test_an_event_is_told_as_soon_as_it_is_whole():
    reader = EventReader(1_000)
    assert list(reader.feed(b"data: 1\n\nda")) == [Event("", b"1")]
    assert list(reader.feed(b"ta: 2\r\n\r")) == []
    assert list(reader.feed(b"\n")) == [Event("", b"2")]


def test_a_last_event_without_its_empty_line_counts():
    assert read(EventReader(1_000), [b"data: [DONE]"]) == [Event("", b"[DONE]")]


def test_what_has_no_end_is_given_up():
    endless = EventReader(2 * MAX_EVENT_BYTES)
    with pytest.raises(TooManyEvents):
        read(endless, [b"x" * 2**20] * (MAX_EVENT_BYTES // 2**20 + 1))
    with pytest.raises(TooManyEvents):
        list(EventReader(10).feed(b"data: 1\n\n" * 2))
