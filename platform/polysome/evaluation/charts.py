"""Charts: numbers in, inline SVG out, coloured by CSS classes `s0` to `s7` and told apart by shapes and dashes as well.

Every chart has a title and a description for screen readers; what it shows stands in a table beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from polysome.evaluation.calibration import Bin

SERIES = 8
"""Colours; further series start again from the first, with other shapes."""

_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 4", "10 4", "4 2 1 2", "3 6")
_TICKS = 5
_TOP = 20.0
"""Above the square of a chart of two axes, where the name of the upward one stands."""
_CHARACTER = 6.2
"""Width of a letter at 11 px, in px, on the wide side."""
_NAME = 44
"""Most letters of the name of a row."""


@dataclass(frozen=True)
class Series:
    """A named row of values; nan where there is none."""

    name: str
    values: Sequence[float]


@dataclass(frozen=True)
class Mark:
    """A value with its interval, of one series."""

    series: int
    value: float
    low: float
    high: float


def radar(title: str, axes: Sequence[str], series: Sequence[Series], *, limit: float = 100.0) -> str:
    """A polygon per series over three axes or more, from 0 in the middle to `limit`; what is below 0 is drawn at 0."""
    radius, middle, height = 120.0, 230.0, 330.0
    angles = [2 * math.pi * place / len(axes) - math.pi / 2 for place in range(len(axes))]

    def point(angle: float, share: float) -> tuple[float, float]:
        return middle + radius * share * math.cos(angle), height / 2 + radius * share * math.sin(angle)

    parts = []
    for ring in range(1, _TICKS + 1):
        parts.append(_polygon([point(angle, ring / _TICKS) for angle in angles], "grid"))
    for angle, name in zip(angles, axes, strict=True):
        parts.append(_line(*point(angle, 0), *point(angle, 1), "grid"))
        x, y = point(angle, 1.12)
        anchor = "middle" if abs(math.cos(angle)) < 0.2 else "start" if math.cos(angle) > 0 else "end"
        parts.append(_text(x, y + 4, name, anchor))
    for ring in (1, _TICKS):
        x, y = point(-math.pi / 2, ring / _TICKS)
        parts.append(_text(x + 3, y + 11, f"{limit * ring / _TICKS:.0f}", "start", "tick"))
    for number, one in enumerate(series):
        points = [
            point(angle, min(max(value, 0.0), limit) / limit)
            for angle, value in zip(angles, one.values, strict=True)
            if not math.isnan(value)
        ]
        if len(points) > 2:
            parts.append(_polygon(points, f"area {_look(number)}", _dash(number)))
        parts += [_marker(x, y, number) for x, y in points]
    told = f"Radar of {', '.join(axes)}, from 0 to {limit:.0f}, for {', '.join(one.name for one in series)}."
    return _svg(title, told, 2 * middle, height, parts)


def bars(title: str, groups: Sequence[str], series: Sequence[Series]) -> str:
    """Horizontal bars, for every group one of each series that has a value, between its name and its value."""
    line, value_width = 15.0, 48.0
    left = 16 + _CHARACTER * max((len(one.name) for one in series), default=0)
    width = left + 300 + value_width
    values = [value for one in series for value in one.values if not math.isnan(value)]
    scale = _Scale(min([0.0, *values]), max([1.0, *values]), left, width - value_width)
    parts, y = [], 4.0
    for place, group in enumerate(groups):
        parts.append(_text(4, y + 11, group, "start", "group"))
        y += 18
        for number, one in enumerate(series):
            value = one.values[place]
            if math.isnan(value):
                continue
            start, end = sorted((scale(0), scale(value)))
            parts.append(_text(left - 8, y + 10, one.name, "end", "value"))
            parts.append(
                f'<rect class="bar {_look(number)}" x="{start:.1f}" y="{y + 1:.1f}" '
                f'width="{max(end - start, 1):.1f}" height="{line - 4:.0f}"/>'
            )
            parts.append(_text(end + 4, y + 10, f"{value:.2f}", "start", "value"))
            y += line
        y += 8
    told = f"Bars for {', '.join(groups)}: {', '.join(one.name for one in series)}."
    return _svg(title, told, width, y + 4, parts)


def forest(title: str, rows: Sequence[tuple[str, Sequence[Mark]]], *, zero: str = "") -> str:
    """Values with their intervals, a row each; `zero` names what the line at 0 means."""
    left, line = 16 + _CHARACTER * min(_NAME, max((len(name) for name, _ in rows), default=0)), 15.0
    width = left + 370
    ends = [end for _, marks in rows for mark in marks for end in (mark.low, mark.high, mark.value)]
    finite = [end for end in ends if not math.isnan(end)]
    scale = _Scale(min([0.0, *finite]), max([1.0, *finite]), left, width - 20)
    height = sum(max(1, len(marks)) * line + 8 for _, marks in rows) + 40
    parts = []
    for tick in scale.ticks():
        parts.append(_line(scale(tick), 6, scale(tick), height - 28, "axis" if tick == 0 else "grid"))
        parts.append(_text(scale(tick), height - 14, f"{tick:g}", "middle", "tick"))
    if zero:
        parts.append(_text(scale(0), height - 2, zero, "middle", "tick"))
    y = 10.0
    for name, marks in rows:
        parts.append(_text(left - 8, y + 8, _short(name, _NAME), "end", "value"))
        for mark in marks:
            middle = y + 4
            if not math.isnan(mark.low + mark.high):
                parts.append(_line(scale(mark.low), middle, scale(mark.high), middle, f"range {_look(mark.series)}"))
            if not math.isnan(mark.value):
                parts.append(_marker(scale(mark.value), middle, mark.series))
            y += line
        y += 8 + (0 if marks else line)
    return _svg(title, f"Values with 95 % intervals of {len(rows)} rows.", width, height, parts)


def reliability(title: str, series: Sequence[tuple[str, Sequence[Bin]]]) -> str:
    """Frequency over confidence; the area of a mark grows with the number of answers in its bin."""
    left, size = 40.0, 260.0
    scale_x, scale_y = _Scale(0, 1, left, left + size), _Scale(0, 1, size + _TOP, _TOP)
    parts = [_line(scale_x(0), scale_y(0), scale_x(1), scale_y(1), "axis")]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_line(scale_x(tick), scale_y(0), scale_x(tick), scale_y(1), "grid"))
        parts.append(_line(scale_x(0), scale_y(tick), scale_x(1), scale_y(tick), "grid"))
        parts.append(_text(scale_x(tick), size + _TOP + 16, f"{tick:g}", "middle", "tick"))
        parts.append(_text(left - 6, scale_y(tick) + 4, f"{tick:g}", "end", "tick"))
    parts.append(_text(left + size / 2, size + _TOP + 32, "confidence", "middle"))
    parts.append(_text(left, 13, "frequency", "start"))
    for number, (_, bins) in enumerate(series):
        filled = [item for item in bins if item.count]
        most = max((item.count for item in filled), default=1)
        places = [(scale_x(item.confidence), scale_y(item.frequency)) for item in filled]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="curve {_look(number)}"{_dash(number)} points="{path}"/>')
        parts += [
            _marker(x, y, number, 2.5 + 5 * math.sqrt(item.count / most))
            for (x, y), item in zip(places, filled, strict=True)
        ]
    told = f"Frequency over confidence for {', '.join(name for name, _ in series)}; on the diagonal both are equal."
    return _svg(title, told, left + size + 20, size + _TOP + 40, parts)


def density(title: str, counts: Sequence[Sequence[int]], low: float, high: float) -> str:
    """How many labels (upwards) and answers (to the right) fall into each cell [label, answer] from low to high."""
    left, size = 50.0, 260.0
    cell = size / len(counts)
    most = max((count for row in counts for count in row), default=0)
    parts = []
    for row, cells in enumerate(counts):
        for column, count in enumerate(cells):
            if count:
                # Logarithmic, so that a lone answer is still seen.
                strength = 0.12 + 0.88 * math.log1p(count) / math.log1p(most)
                parts.append(
                    f'<rect class="cell s0" x="{left + column * cell:.1f}" y="{_TOP + size - (row + 1) * cell:.1f}" '
                    f'width="{cell:.1f}" height="{cell:.1f}" fill-opacity="{strength:.2f}"/>'
                )
    parts.append(_line(left, _TOP + size, left + size, _TOP, "axis"))
    for share in (0.0, 0.5, 1.0):
        text = f"{low + share * (high - low):.3g}"
        parts.append(_text(left + share * size, size + _TOP + 16, text, "middle", "tick"))
        parts.append(_text(left - 6, _TOP + 4 + size * (1 - share), text, "end", "tick"))
    parts.append(_text(left + size / 2, size + _TOP + 32, "answer", "middle"))
    parts.append(_text(left, 13, "label", "start"))
    return _svg(
        title, "Answers over labels; on the diagonal both are equal.", left + size + 20, size + _TOP + 40, parts
    )


class _Scale:
    """From values to px; `high` may lie left of or above `low`."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high if high > low else low + 1, start, end

    def __call__(self, value: float) -> float:
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values between low and high, 0 among them when it lies there."""
        rough = (self.high - self.low) / _TICKS
        power = 10 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        return [
            round(number * step, 10) for number in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
        ]


def marker(series: int) -> str:
    """The mark of a series for a legend."""
    return (
        f'<svg class="key" viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">{_marker(7, 7, series)}</svg>'
    )


def _svg(title: str, told: str, width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg role="img" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'style="min-width:{0.75 * width:.0f}px;max-width:{1.25 * width:.0f}px" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title><desc>{escape(told)}</desc>{"".join(parts)}</svg>'
    )


def _look(series: int) -> str:
    return f"s{series % SERIES}"


def _dash(series: int) -> str:
    dash = _DASHES[series % SERIES]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _line(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    return f'<line class="{name}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _polygon(points: Sequence[tuple[float, float]], name: str, dash: str = "") -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polygon class="{name}"{dash} points="{path}"/>'


def _text(x: float, y: float, text: str, anchor: str, name: str = "label") -> str:
    return f'<text class="{name}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _short(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _marker(x: float, y: float, series: int, size: float = 4.5) -> str:
    """Circle, square, triangle, diamond, then the same unfilled; where the colours begin again, another shape."""
    name = f"mark {_look(series)}" + (" hollow" if series % SERIES > 3 else "")
    shape = (series + series // SERIES) % 4
    if shape == 0:
        return f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"/>'
    if shape == 1:
        corners = [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]
    elif shape == 2:
        corners = [(0.0, -1.3), (1.2, 0.9), (-1.2, 0.9)]
    else:
        corners = [(0.0, -1.4), (1.4, 0.0), (0.0, 1.4), (-1.4, 0.0)]
    return _polygon([(x + size * right * 0.9, y + size * down * 0.9) for right, down in corners], name)
