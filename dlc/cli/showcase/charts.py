"""Curves and dots as SVG that a page holds inline: its style sheet colours them, light or dark.

Each drawing is as wide as a phone and grows with its place. What a curve is, and each point of a
drawing of dots, shows when the pointer rests on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 42.0, 10.0, 24.0, 34.0
#: Classes of the style sheet, in the order in which series take them.
COLOURS = ("a", "b", "c", "d")
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Axis:
    """One axis: values from `low` to `high` on pixels from `start` to `end`.

    Attributes
    ----------
    low, high : float
    start, end : float
    log : bool
    zero : bool
        Of a logarithmic axis: its foot stands for 0, a decade below the least that is more.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    zero: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = map(self._scaled, (self.low, self.high, max(value, self._least())))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def _least(self) -> float:
        return self.low if self.log else -math.inf

    def ticks(self) -> list[float]:
        """Round values along it: powers of ten, or steps of 1, 2 or 5."""
        if self.log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            every = max(1, (last - first) // 5)
            return [10.0**n for n in range(first, last + 1, every)]
        rough = (self.high - self.low) / 5
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(size * n for n in (1, 2, 5, 10) if size * n >= rough * 0.999)
        count = math.floor(self.high / step + 1e-9) - math.ceil(self.low / step - 1e-9) + 1
        return [(math.ceil(self.low / step - 1e-9) + n) * step for n in range(count)]


def lines(
    series: Mapping[str, Sequence[float]],
    *,
    across: str,
    up: str,
    log: bool = False,
    first: int = 1,
    colours: Sequence[str] = COLOURS,
) -> str:
    """Curves over numbered points.

    Parameters
    ----------
    series : mapping of str to sequence of float
        As many points each.
    across, up : str
        What the axes show.
    log : bool
        A logarithmic vertical axis; values that are not above 0 lie at its foot, marked 0.
    first : int
        The number of the first point.
    colours : sequence of str
        Classes of the style sheet, one for each series.
    """
    values = [value for each in series.values() for value in each]
    low, high = _range(values, log)
    count = max(map(len, series.values()))
    x = Axis(first, first + max(count - 1, 1), LEFT, WIDTH - RIGHT)
    y = Axis(low, high, HEIGHT - BOTTOM, TOP, log, zero=log and min(values) <= 0)
    body = [*_horizontal(y), *_vertical(x)]
    for colour, (name, points) in zip(colours, series.items()):
        places = " ".join(f"{x(first + n):.1f},{y(v):.1f}" for n, v in enumerate(points))
        body.append(f'<polyline class="line {colour}" points="{places}"><title>{escape(name)}')
        body.append("</title></polyline>")
    about = f"{up} over {across}: {', '.join(series)}"
    return legend(series, colours) + _svg(body, about, across, up)


def dots(
    series: Mapping[str, Sequence[float]], *, across: str, colours: Sequence[str] = COLOURS
) -> str:
    """A row of dots for each name, with a line at their mean.

    Parameters
    ----------
    series : mapping of str to sequence of float
    across : str
        What the axis shows.
    colours : sequence of str
        Classes of the style sheet, one for each name.
    """
    values = [value for each in series.values() for value in each]
    margin = max(0.15 * (max(values) - min(values)), 1e-3)
    x = Axis(min(values) - margin, max(values) + margin, LEFT + 26, WIDTH - RIGHT - 10)
    foot = HEIGHT - BOTTOM
    body = []
    for tick in x.ticks():
        body.append(f'<path class="grid" d="M{x(tick):.1f} {TOP}V{foot}"/>')
        body.append(f'<text class="mid" x="{x(tick):.1f}" y="{foot + 14}">{_written(tick)}</text>')
    apart = (foot - TOP) / len(series)
    for row, (name, each) in enumerate(series.items()):
        middle, mean = TOP + (row + 0.5) * apart, sum(each) / len(each)
        body.append(f'<text class="end" x="{LEFT + 20}" y="{middle + 4:.1f}">{escape(name)}</text>')
        body.append(f'<path class="mean {colours[row]}" d="M{x(mean):.1f} {middle - 13:.1f}v26">')
        body.append(f"<title>{escape(name)}: {_written(mean)} on average</title></path>")
        for value in each:
            spot = f'cx="{x(value):.1f}" cy="{middle:.1f}" r="5"'
            body.append(f'<circle class="dot {colours[row]}" {spot}>')
            body.append(f"<title>{escape(name)}: {_written(value)}</title></circle>")
    return _svg(body, f"{across}: {', '.join(series)}", across, "")


def legend(names: Iterable[str], colours: Sequence[str] = COLOURS) -> str:
    """Names with the colours of their series."""
    items = (f'<span class="key {c}">{escape(n)}</span>' for c, n in zip(colours, names))
    return f'<p class="legend">{"".join(items)}</p>'


def _range(values: Sequence[float], log: bool) -> tuple[float, float]:
    if log:
        above = [value for value in values if value > 0]
        low, high = min(above, default=1.0), max(above, default=1.0)
        first = math.floor(math.log10(low)) - (len(above) < len(values))
        return 10.0**first, 10.0 ** math.ceil(math.log10(high) + 1e-9)
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _written(value: float) -> str:
    return f"{value:.4g}"


def _horizontal(y: Axis) -> list[str]:
    found = []
    for tick in y.ticks():
        found.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        text = _power(tick) if y.log else _written(tick)
        if y.zero and tick == y.low:
            text = "0"
        found.append(f'<text class="end" x="{LEFT - 6}" y="{y(tick) + 4:.1f}">{text}</text>')
    return found


def _power(value: float) -> str:
    """A power of ten: 10⁻³, but 0.01 and 100 and what is between them as it is."""
    exponent = round(math.log10(value))
    return f"{value:g}" if -3 < exponent < 3 else f"10{str(exponent).translate(SUPERSCRIPTS)}"


def _vertical(x: Axis) -> list[str]:
    foot = HEIGHT - BOTTOM
    whole = [tick for tick in x.ticks() if tick == round(tick)]
    return [f'<text class="mid" x="{x(t):.1f}" y="{foot + 14}">{t:g}</text>' for t in whole]


def _svg(body: Sequence[str], about: str, across: str, up: str) -> str:
    middle = (LEFT + WIDTH - RIGHT) / 2
    labels = f'<text class="mid label" x="{middle}" y="{HEIGHT - 4}">{escape(across)}</text>'
    if up:
        labels += f'<text class="label" x="4" y="11">{escape(up)}</text>'
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" '
        f'aria-label="{escape(about, quote=True)}">{"".join(body)}{labels}</svg>'
    )
