"""Charts are drawn to scale, say what they show, and obey no text."""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from api.charts import curve, grid, histogram, horizontal_bars, interval_bars, share_bar

SVG = "{http://www.w3.org/2000/svg}"
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
NUMBERS = st.floats(-1e12, 1e12) | st.sampled_from((math.nan, math.inf, -math.inf))

CHARTS: dict[str, Callable[[str, float], Markup]] = {
    "histogram": lambda text, number: histogram([(text, number), ("b", 2)], title=text),
    "horizontal_bars": lambda text, number: horizontal_bars([(text, number, 4)], title=text),
    "interval_bars": lambda text, number: interval_bars([(text, number, 0, 1)], title=text, low=-1, high=1),
    "curve": lambda text, number: curve(
        [(0, 0), (number, 1)], title=text, x_label=text, y_label=text, diagonal=True
    ),
    "grid": lambda text, number: grid(
        [[number, 1]], [text], [text, "b"], title=text, x_label=text, y_label=text
    ),
}


def parsed(chart: Markup) -> ElementTree.Element:
    return ElementTree.fromstring(str(chart))  # noqa: S314  # what we have drawn ourselves


def bars(chart: Markup) -> list[ElementTree.Element]:
    return [each for each in parsed(chart).iter(f"{SVG}rect") if each.get("class") == "bar"]


@pytest.mark.parametrize("name", CHARTS)
@given(text=TEXTS, number=NUMBERS)
def test_whatever_text_and_number_come_the_drawing_is_well_formed(
    name: str, text: str, number: float
) -> None:
    drawn = parsed(CHARTS[name](text, number))

    known = {"svg", "title", "desc", "rect", "line", "polyline", "circle", "text"}
    assert {each.tag.removeprefix(SVG) for each in drawn.iter()} <= known
    attributes = {attribute for each in drawn.iter() for attribute in each.attrib}
    assert not any(each == "style" or each.startswith("on") for each in attributes)
    places = [each.get(at, "0") for each in drawn.iter() for at in ("x", "y", "width", "height", "cx", "cy")]
    assert all(math.isfinite(float(place)) for place in places)


@pytest.mark.parametrize("name", CHARTS)
def test_markup_in_a_text_stays_text(name: str) -> None:
    chart = CHARTS[name]("<script>alert('&')</script>", 1.0)

    assert "<script" not in chart
    assert "alert('&')" in (parsed(chart).findtext(f"{SVG}title") or "")


@pytest.mark.parametrize("name", CHARTS)
def test_the_same_data_make_the_same_drawing(name: str) -> None:
    assert CHARTS[name]("a", 1.0) == CHARTS[name]("a", 1.0)
    assert CHARTS[name]("a", 1.0) != CHARTS[name]("a", 2.0)


@pytest.mark.parametrize("name", CHARTS)
def test_a_drawing_names_itself_and_says_what_it_shows(name: str) -> None:
    drawn = parsed(CHARTS[name]("Spread", 0.25))

    named = {each.get("id") for each in drawn if each.tag in (f"{SVG}title", f"{SVG}desc")}
    assert drawn.get("role") == "img"
    assert set((drawn.get("aria-labelledby") or "").split()) == named
    assert drawn.findtext(f"{SVG}title") == "Spread"
    assert "0.25" in (drawn.findtext(f"{SVG}desc") or "")


def test_the_bars_of_a_histogram_are_as_high_as_their_values() -> None:
    heights = [float(each.get("height") or 0) for each in bars(histogram([("a", 1), ("b", 4)], title="t"))]

    assert heights[1] == pytest.approx(4 * heights[0], rel=0.01)


def test_a_bar_is_its_share_of_the_track_and_never_longer() -> None:
    chart = horizontal_bars([("a", 1, 4), ("b", 9, 4)], title="t")

    track = next(each for each in parsed(chart).iter(f"{SVG}rect") if each.get("class") == "track")
    full = float(track.get("width") or 0)
    assert [float(each.get("width") or 0) for each in bars(chart)] == pytest.approx(
        [full / 4, full], rel=0.01
    )


def test_the_diagonal_joins_equal_values() -> None:
    chart = curve([(0, 0), (0.5, 0.5)], title="t", x_label="x", y_label="y", diagonal=True)

    (line,) = (each for each in parsed(chart).iter(f"{SVG}line") if each.get("class") == "diagonal")
    points = list(parsed(chart).iter(f"{SVG}circle"))
    middle = [(float(line.get(f"{at}1") or 0) + float(line.get(f"{at}2") or 0)) / 2 for at in "xy"]
    assert [float(points[1].get(f"c{at}") or 0) for at in "xy"] == pytest.approx(middle, abs=0.02)


def test_a_long_label_is_shortened_in_the_drawing_and_whole_beside_it() -> None:
    label = "为什么需要三次握手" * 5
    drawn = parsed(horizontal_bars([(label, 1, 2)], title="t"))

    shown = next(drawn.iter(f"{SVG}text"))
    assert (shown.text or "").endswith("…")
    assert shown.findtext(f"{SVG}title") == label


def test_a_chart_of_nothing_says_so() -> None:
    for chart in (histogram([], title="t"), horizontal_bars([], title="t")):
        assert "No data." in parsed(chart).itertext()


def test_a_small_bar_is_silent_beside_the_number_that_says_the_same() -> None:
    drawn = ElementTree.fromstring(str(share_bar(0.5)))  # noqa: S314  # ours

    assert drawn.get("aria-hidden") == "true"
    assert [each.get("width") for each in drawn.iter("rect")] == ["60", "30"]
