"""A picture of values over time: panels one above the other, as one SVG file."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _LEFT, _RIGHT = 860, 70, 120
_HEIGHT, _GAP, _TOP, _BOTTOM = 110, 34, 54, 44
_COLOURS = ("#2b6cb0", "#b7791f")


@dataclass(frozen=True)
class Series:
    """A row of values, one for each time; None where there is none."""

    name: str
    values: Sequence[float | None]
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """Series over one axis from 0 up."""

    name: str
    series: Sequence[Series]
    dots: bool = False
    """Single values, which no line joins."""


def plotted(title: str, seconds: Sequence[float], panels: Sequence[Panel]) -> str:
    """The picture; `seconds` are the times of all values, rising."""
    height = _TOP + len(panels) * (_HEIGHT + _GAP) + _BOTTOM
    end = max(seconds) + 1
    width = _WIDTH - _LEFT - _RIGHT

    def across(second: float) -> float:
        return _LEFT + width * second / end

    parts = [_text(_LEFT, 24, title, size=15)]
    for place, panel in enumerate(panels):
        top = _TOP + place * (_HEIGHT + _GAP)
        limit = max((value for one in panel.series for value in one.values if value is not None), default=0) or 1

        def up(value: float, top: float = top, limit: float = limit) -> float:
            return top + _HEIGHT * (1 - value / limit)

        parts.append(_text(_LEFT, top - 6, panel.name))
        for share in (0, 0.5, 1):
            y = up(limit * share)
            parts.append(f'<path d="M{_LEFT} {y:.1f}H{_LEFT + width}" stroke="#9994" />')
            parts.append(_text(_LEFT - 8, y + 4, f"{limit * share:g}", anchor="end"))
        for number, one in enumerate(panel.series):
            colour = _COLOURS[number % len(_COLOURS)]
            points = [
                (across(second), up(value))
                for second, value in zip(seconds, one.values, strict=True)
                if value is not None
            ]
            if panel.dots:
                parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.8" fill="{colour}" />' for x, y in points]
            else:
                dash = ' stroke-dasharray="4 3"' if one.dashed else ""
                path = "".join(f"H{x:.1f}V{y:.1f}" for x, y in points[1:])
                start = f"M{points[0][0]:.1f} {points[0][1]:.1f}" if points else "M0 0"
                parts.append(f'<path d="{start}{path}" fill="none" stroke="{colour}" stroke-width="2"{dash} />')
            if len(panel.series) > 1:
                parts.append(_text(_WIDTH - _RIGHT + 8, top + 12 + 18 * number, one.name, colour=colour))
    step = next(step for step in (10, 20, 30, 60, 120, 300, 600, 1800) if end / step <= 14)
    bottom = height - _BOTTOM
    parts += [_text(across(second), bottom, str(second), anchor="middle") for second in range(0, int(end) + 1, step)]
    parts.append(_text(_LEFT + width / 2, bottom + 24, "seconds", anchor="middle"))
    told = escape(f"{title}: {', '.join(panel.name for panel in panels)} over {end:g} seconds")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{told}">\n'
        '<rect width="100%" height="100%" fill="#fff" />\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, colour: str = "#333") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-family="sans-serif" font-size="{size}" '
        f'fill="{colour}">{escape(text)}</text>'
    )
