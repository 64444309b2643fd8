"""Charts as inline SVG for pages: escaped, the same bytes for the same data, readable without colours.

Pages that show them extend `base.html` of `api.html.environment()`, whose style gives the colours; without
that style a chart is drawn in the text's own colour. No chart needs a script or an attribute of style.
"""

import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256

from markupsafe import Markup

from api.html import visible

#: units of the drawing; a page scales it to its width
_WIDTH = 480
_TEXT = 12
_ROW = 24
_WIDE = ("W", "F")
_EMPTY = "No data."


def histogram(bars: Sequence[tuple[str, float]], *, title: str) -> Markup:
    """Upright bars side by side: what a bar stands for, and how many."""
    height, left, top, bottom = 190, 0, 22, 28
    plot = height - top - bottom
    highest = _highest(value for _, value in bars)
    step = (_WIDTH - left) / max(1, len(bars))
    parts = [_line(left, height - bottom, _WIDTH, height - bottom)]
    for index, (label, value) in enumerate(bars):
        x, size = left + index * step, plot * _share(value, 0, highest)
        middle = x + step / 2
        if size:
            parts.append(_rect(x + 2, height - bottom - size, step - 4, size))
            parts.append(_text(middle, height - bottom - size - 5, _number(value), "middle"))
        shown = _shortened(label, step - 2)
        parts.append(_text(middle, height - bottom + 17, shown, "middle", soft=True))
    return _chart(title, _spoken(bars), height, parts)


def horizontal_bars(rows: Sequence[tuple[str, float, float]], *, title: str) -> Markup:
    """A bar a row: label, value, and the maximum that a full bar stands for."""
    names = _name_width(label for label, _, _ in rows)
    amounts = [f"{_number(value)} / {_number(maximum)}" for _, value, maximum in rows]
    space = _WIDTH - names - max(map(_width, amounts), default=0) - 8
    parts: list[Markup] = []
    for index, ((label, value, maximum), amount) in enumerate(zip(rows, amounts, strict=True)):
        y = index * _ROW
        parts.append(_name(label, y, names))
        parts.append(_rect(names, y + 5, space, _ROW - 10, "track"))
        parts.append(_rect(names, y + 5, space * _share(value, 0, maximum), _ROW - 10))
        parts.append(_text(_WIDTH, y + 16, amount, "end"))
    spoken = [(label, amount) for (label, _, _), amount in zip(rows, amounts, strict=True)]
    return _chart(title, _spoken(spoken), len(rows) * _ROW, parts)


def interval_bars(
    rows: Sequence[tuple[str, float, float, float]], *, title: str, low: float, high: float
) -> Markup:
    """A point within its interval a row: label, value, lower and upper end; the axis is from low to high."""
    names = _name_width(row[0] for row in rows)
    amounts = [f"{_number(value)} [{_number(least)}, {_number(most)}]" for _, value, least, most in rows]
    space = _WIDTH - names - max(map(_width, amounts), default=0) - 16
    height = len(rows) * _ROW + 22

    def at(value: float) -> float:
        return names + 4 + space * _share(value, low, high)

    parts = _scale_below(at, low, high, height - 22)
    for index, ((label, value, least, most), amount) in enumerate(zip(rows, amounts, strict=True)):
        y = index * _ROW + _ROW / 2
        parts.append(_name(label, index * _ROW, names))
        parts.append(_line(at(least), y, at(most), y, "interval"))
        parts.append(_dot(at(value), y))
        parts.append(_text(_WIDTH, y + 4, amount, "end"))
    spoken = [(row[0], amount) for row, amount in zip(rows, amounts, strict=True)]
    return _chart(title, _spoken(spoken), height, parts)


def curve(
    points: Sequence[tuple[float, float]], *, title: str, x_label: str, y_label: str, diagonal: bool
) -> Markup:
    """A line through points in the order given; `diagonal` adds the line where both axes are equal."""
    shown = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    height, left, top, bottom = 300, 56, 26, 42
    x_low, x_high = _bounds([x for x, _ in shown])
    y_low, y_high = _bounds([y for _, y in shown])
    if diagonal:
        x_low = y_low = min(x_low, y_low)
        x_high = y_high = max(x_high, y_high)

    def across(x: float) -> float:
        return left + (_WIDTH - left - 20) * _share(x, x_low, x_high)

    def up(y: float) -> float:
        return height - bottom - (height - top - bottom) * _share(y, y_low, y_high)

    parts = _scale_below(across, x_low, x_high, height - bottom, top=top)
    for tick in _ticks(y_low, y_high):
        parts.append(_line(left, up(tick), _WIDTH - 20, up(tick), "grid"))
        parts.append(_text(left - 8, up(tick) + 4, _number(tick), "end", soft=True))
    parts.append(_text(0, 12, y_label, "start", soft=True))
    parts.append(_text(_WIDTH - 20, height - 6, x_label, "end", soft=True))
    if diagonal:
        parts.append(_line(across(x_low), up(y_low), across(x_high), up(y_high), "diagonal"))
    places = [(across(x), up(y)) for x, y in shown]
    parts.append(_polyline(places))
    parts.extend(_dot(x, y) for x, y in places if len(places) <= 60)
    spoken = [(f"{x_label} {_number(x)}", f"{y_label} {_number(y)}") for x, y in shown]
    return _chart(title, _spoken(spoken), height, parts)


def grid(
    cells: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    x_label: str,
    y_label: str,
) -> Markup:
    """A table of numbers, the larger the darker, such as a confusion matrix; `cells` row by row."""
    names = _name_width([*rows, y_label])
    top, side = 44, min(64.0, (_WIDTH - names) / max(1, len(columns)))
    tall = min(side, 40.0)
    highest = _highest(value for line in cells for value in line)
    parts = [_text(names, 12, x_label, "start", soft=True), _text(0, top - 8, y_label, "start", soft=True)]
    for index, column in enumerate(columns):
        shown = _shortened(column, side - 4)
        parts.append(_text(names + (index + 0.5) * side, top - 8, shown, "middle"))
    for down, (row, line) in enumerate(zip(rows, cells, strict=True)):
        y = top + down * tall
        parts.append(_name(row, y + (tall - _ROW) / 2, names))
        for index, value in enumerate(line):
            share = _share(value, 0, highest)
            parts.append(_cell(names + index * side, y, side, tall, share))
            middle = names + (index + 0.5) * side
            parts.append(_text(middle, y + tall / 2 + 4, _number(value), "middle"))
    spoken = [
        (f"{y_label} {row}, {x_label} {column}", _number(value))
        for row, line in zip(rows, cells, strict=True)
        for column, value in zip(columns, line, strict=True)
    ]
    return _chart(title, _spoken(spoken), top + len(rows) * tall + 2, parts)


def timeline(bars: Sequence[tuple[str, float, float]], *, title: str) -> Markup:
    """Narrow bars in the order of time: the moment, how many, and how many of them are marked; few labels."""
    height, top, bottom = 170, 22, 28
    plot = height - top - bottom
    highest = _highest(value for _, value, _ in bars)
    step = _WIDTH / max(1, len(bars))
    parts = [
        _line(0, height - bottom, _WIDTH, height - bottom),
        _text(0, 12, _number(highest), "start", soft=True),
    ]
    for index, (_, value, marked) in enumerate(bars):
        for amount, kind in ((value, "track"), (marked, "bar")):
            # a single marked line among thousands is seen, too
            size = max(plot * _share(amount, 0, highest), 2.0) if amount else 0.0
            if size:
                parts.append(_rect(index * step + 0.5, height - bottom - size, step - 1, size, kind))
    if bars:
        parts.append(_text(0, height - 9, bars[0][0], "start", soft=True))
    if len(bars) > 1:
        parts.append(_text(_WIDTH, height - 9, bars[-1][0], "end", soft=True))
    spoken = [(label, f"{_number(value)}, marked {_number(marked)}") for label, value, marked in bars]
    return _chart(title, _spoken(spoken), height, parts)


def spans(rows: Sequence[tuple[str, float, float, str]], *, title: str) -> Markup:
    """A stretch of time a row: label, begin and end as numbers, and both in words."""
    names = _name_width(label for label, *_ in rows)
    low = min((begin for _, begin, _, _ in rows), default=0.0)
    high = max((end for _, _, end, _ in rows), default=0.0)

    def at(value: float) -> float:
        return names + 6 + (_WIDTH - names - 12) * _share(value, low, high)

    parts: list[Markup] = []
    for index, (label, begin, end, _) in enumerate(rows):
        y = index * _ROW + _ROW / 2
        parts.append(_name(label, index * _ROW, names))
        parts.append(_line(at(begin), y, at(end), y, "interval"))
        parts.extend(_dot(at(each), y) for each in sorted({begin, end}))
    return _chart(title, _spoken([(label, said) for label, _, _, said in rows]), len(rows) * _ROW, parts)


def share_bar(share: float) -> Markup:
    """A small bar for a table's cell, beside the number that says the same."""
    parts = [_rect(0, 0, 60, 8, "track"), _rect(0, 0, 60 * _share(share, 0, 1), 8)]
    return Markup(
        '<svg class="share" viewBox="0 0 60 8" width="60" height="8" aria-hidden="true">{}</svg>'
    ).format(Markup("").join(parts))


def _chart(title: str, description: str, height: float, parts: Sequence[Markup]) -> Markup:
    title, description = visible(title), visible(description)
    # ids that differ from chart to chart, and not from run to run
    mark = sha256(f"{title}\0{description}".encode(errors="replace")).hexdigest()[:12]
    return Markup(
        '<svg class="chart" role="img" aria-labelledby="chart-{mark}-title chart-{mark}-desc" '
        'viewBox="0 0 {width} {height}" width="{width}" height="{height}" xmlns="http://www.w3.org/2000/svg" '
        'font-size="{text}" fill="currentColor">'
        '<title id="chart-{mark}-title">{title}</title><desc id="chart-{mark}-desc">{description}</desc>'
        "{parts}</svg>"
    ).format(
        mark=mark,
        width=_WIDTH,
        height=_place(max(height, _ROW)),
        text=_TEXT,
        title=title,
        description=description or _EMPTY,
        parts=Markup("").join(parts) if description else _text(0, 16, _EMPTY, "start"),
    )


def _spoken(pairs: Iterable[tuple[str, str | float]]) -> str:
    said = (f"{label}: {value if isinstance(value, str) else _number(value)}" for label, value in pairs)
    return "; ".join(said)


def _rect(x: float, y: float, width: float, height: float, kind: str = "bar") -> Markup:
    opacity = Markup(' fill-opacity="0.12"') if kind == "track" else ""
    return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}" rx="1.5"{}/>').format(
        kind, _place(x), _place(y), _place(max(0.0, width)), _place(height), opacity
    )


def _cell(x: float, y: float, width: float, height: float, share: float) -> Markup:
    # half the colour at most: the number on it keeps its contrast in light and in dark
    return Markup(
        '<rect class="bar" x="{}" y="{}" width="{}" height="{}" fill-opacity="{}" stroke="currentColor" '
        'stroke-opacity="0.2"/>'
    ).format(_place(x + 1), _place(y + 1), _place(width - 2), _place(height - 2), _place(share / 2))


def _line(x1: float, y1: float, x2: float, y2: float, kind: str = "axis") -> Markup:
    look = {
        "axis": 'stroke-opacity="0.5"',
        "grid": 'stroke-opacity="0.15"',
        "interval": 'stroke-width="3" stroke-opacity="0.45"',
        "diagonal": 'stroke-opacity="0.5" stroke-dasharray="4 4"',
    }[kind]
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}" stroke="currentColor" {}/>').format(
        kind,
        _place(x1),
        _place(y1),
        _place(x2),
        _place(y2),
        Markup(look),  # noqa: S704  # a constant of ours
    )


def _polyline(places: Sequence[tuple[float, float]]) -> Markup:
    along = " ".join(f"{_place(x)},{_place(y)}" for x, y in places)
    return Markup(
        '<polyline class="curve" points="{}" fill="none" stroke="currentColor" stroke-width="2"/>'
    ).format(along)


def _dot(x: float, y: float) -> Markup:
    return Markup('<circle class="dot" cx="{}" cy="{}" r="4"/>').format(_place(x), _place(y))


def _text(x: float, y: float, text: str, anchor: str, *, soft: bool = False) -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        "soft" if soft else "plain", _place(x), _place(y), anchor, visible(text)
    )


def _name(label: str, y: float, width: float) -> Markup:
    """A row's label, shortened to the width; the whole of it shows on hovering."""
    shown = _shortened(label, width - 8)
    if shown == label:
        return _text(0, y + 16, label, "start")
    return Markup('<text x="0" y="{}">{}<title>{}</title></text>').format(
        _place(y + 16), visible(shown), visible(label)
    )


def _scale_below(
    at: Callable[[float], float], low: float, high: float, y: float, top: float = 0
) -> list[Markup]:
    parts = []
    for tick in _ticks(low, high):
        parts.append(_line(at(tick), top, at(tick), y, "grid"))
        parts.append(_text(at(tick), y + 15, _number(tick), "middle", soft=True))
    return parts


def _name_width(labels: Iterable[str]) -> float:
    return min(190.0, max(map(_width, labels), default=0.0) + 8)


def _width(text: str) -> float:
    """About how wide a text is drawn; a Chinese character is as wide as it is high."""
    return sum(_TEXT if unicodedata.east_asian_width(each) in _WIDE else _TEXT * 0.6 for each in text)


def _shortened(text: str, width: float) -> str:
    if _width(text) <= width:
        return text
    # a drawing is never wider than so many characters: a text without end is not measured to its end
    kept = text[:_WIDTH]
    while kept and _width(kept) + _TEXT > width:
        kept = kept[:-1]
    return kept + "…"


def _share(value: float, low: float, high: float) -> float:
    """Where a value lies between two bounds, from 0 to 1."""
    if not math.isfinite(value) or high <= low:
        return 0.0
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _highest(values: Iterable[float]) -> float:
    return max((value for value in values if math.isfinite(value)), default=0) or 1


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """From 0 to 1 for shares, and as far as the values go for all else."""
    low, high = min([0.0, *values]), max([1.0, *values])
    step = _step(low, high)
    return math.floor(low / step) * step, math.ceil(high / step) * step


def _ticks(low: float, high: float) -> list[float]:
    step = _step(low, high)
    first, last = math.ceil(round(low / step, 6)), math.floor(round(high / step, 6))
    return [index * step for index in range(first, last + 1)]


def _step(low: float, high: float) -> float:
    """The round distance that makes four to ten steps of a range."""
    if high <= low:
        return 1.0
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * each for each in (1, 2, 5, 10) if rough <= power * each * 1.0001)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.2f}".rstrip("0").rstrip(".")


def _place(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
