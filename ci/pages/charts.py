"""Plots as inline SVG in the colours of the page around them (`ci.pages.html.STYLE`), so that they follow dark mode.

Numbers that are not finite are left out of a plot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ci.pages.html import Html, text

COLOURS = ("var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)")
_WIDTH, _HEIGHT = 480, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 44


@dataclass(frozen=True)
class Series:
    """Points of one line or cloud; `dashed` for what is only a reference."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = COLOURS[0]
    dashed: bool = False
    dots: bool = False  # mark each point


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval, what it must reach, and what the champion has."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    bound: float | None = None
    champion: float | None = None


class _Axes:
    """Maps data to pixels, and draws frame, ticks and names."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x, self.y = _wider(x), _wider(y)

    def left(self, value: float) -> float:
        return _LEFT + (value - self.x[0]) / (self.x[1] - self.x[0]) * (_WIDTH - _LEFT - _RIGHT)

    def top(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - self.y[0]) / (self.y[1] - self.y[0]) * (_HEIGHT - _TOP - _BOTTOM)

    def frame(self, x_label: str, y_label: str, x_ticks: bool = True) -> list[str]:
        base = _HEIGHT - _BOTTOM
        parts: list[str] = []
        for tick in ticks(*self.y):
            y = self.top(tick)
            parts.append(_line(_LEFT, y, _WIDTH - _RIGHT, y, "var(--line)"))
            parts.append(_label(_LEFT - 8, y + 4, number(tick), "end"))
        for tick in ticks(*self.x) if x_ticks else []:
            parts.append(_line(self.left(tick), base, self.left(tick), base + 4, "var(--soft)"))
            parts.append(_label(self.left(tick), base + 18, number(tick)))
        parts.append(_line(_LEFT, base, _WIDTH - _RIGHT, base, "var(--soft)"))
        parts.append(_label((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, x_label))
        middle = (_TOP + base) / 2
        parts.append(
            f'<text x="14" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 14 {middle:.1f})">'
            f"{escape(y_label)}</text>"
        )
        return parts


def lines(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    x: tuple[float, float] | None = None,
    y: tuple[float, float] | None = None,
) -> Html:
    """Return a line chart; `x` and `y` fix the ranges, which otherwise follow the data."""
    axes = _Axes(x or _extent([v for s in series for v in s.x]), y or _extent([v for s in series for v in s.y]))
    parts = axes.frame(x_label, y_label)
    for one in series:
        points = " ".join(f"{axes.left(a):.1f},{axes.top(b):.1f}" for a, b in _pairs(one))
        dash = ' stroke-dasharray="5 4"' if one.dashed else ""
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{one.colour}" stroke-width="2"'
            f' stroke-linejoin="round"{dash}><title>{escape(one.name)}</title></polyline>'
        )
        for a, b in _pairs(one) if one.dots else []:
            parts.append(f'<circle cx="{axes.left(a):.1f}" cy="{axes.top(b):.1f}" r="3.5" fill="{one.colour}"/>')
    return _figure(title, parts, [(one.name, one.colour) for one in series])


def points(title: str, series: Sequence[Series], x_label: str, y_label: str, diagonal: bool = False) -> Html:
    """Return a scatter plot; `diagonal` draws where x equals y."""
    xs, ys = [v for s in series for v in s.x], [v for s in series for v in s.y]
    both = _extent([*xs, *ys]) if diagonal else None
    axes = _Axes(both or _extent(xs), both or _extent(ys))
    parts = axes.frame(x_label, y_label)
    if both:
        ends = (axes.left(both[0]), axes.top(both[0]), axes.left(both[1]), axes.top(both[1]))
        parts.append(_line(*ends, "var(--soft)", dashed=True))
    for one in series:
        parts += [
            f'<circle cx="{axes.left(a):.1f}" cy="{axes.top(b):.1f}" r="2.5" fill="{one.colour}" fill-opacity="0.55"/>'
            for a, b in _pairs(one)
        ]
    return _figure(title, parts, [(one.name, one.colour) for one in series])


def bars(
    title: str,
    names: Sequence[str],
    series: Sequence[tuple[str, Sequence[float]]],
    y_label: str,
    bound: float | None = None,
) -> Html:
    """Return bars side by side: one group for each of `names`, one bar in it for each of `series` (name, values).

    `bound` is a line that the bars should stay above or below. Values are not negative.
    """
    top = max([v for _, vs in series for v in (*vs, bound or 0) if math.isfinite(v)], default=1)
    axes = _Axes((0, max(len(names), 1)), (0, top))
    parts = axes.frame("", y_label, x_ticks=False)
    slot = (_WIDTH - _LEFT - _RIGHT) / max(len(names), 1)
    width = min(slot * 0.8 / max(len(series), 1), 46)
    crowded = max((len(name) for name in names), default=0) * 6.5 > slot
    step = max(1, math.ceil(len(names) * 15 / (_WIDTH - _LEFT - _RIGHT))) if crowded else 1
    for i, name in enumerate(names):
        middle = _LEFT + slot * (i + 0.5)
        for j, (series_name, values) in enumerate(series):
            if not math.isfinite(values[i]):
                continue
            y = axes.top(values[i])
            x = middle + (j - len(series) / 2) * width
            told = escape(f"{series_name}, {name}: {number(values[i])}")
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width - 1, 1):.1f}" height="{_HEIGHT - _BOTTOM - y:.1f}"'
                f' fill="{COLOURS[j % 4]}"><title>{told}</title></rect>'
            )
        if i % step == 0:
            parts.append(_tick_name(middle, name, crowded))
    legend = [(name, COLOURS[j % 4]) for j, (name, _) in enumerate(series)]
    if bound is not None:
        y = axes.top(bound)
        parts.append(_line(_LEFT, y, _WIDTH - _RIGHT, y, "var(--bad)", dashed=True))
        legend.append((f"bound {number(bound)}", "var(--bad)"))
    return _figure(title, parts, legend)


def heat_map(title: str, names: Sequence[str], counts: Sequence[Sequence[int]], x_label: str, y_label: str) -> Html:
    """Return a confusion matrix: `counts[actual][predicted]`, shaded by the share of the actual class."""
    size, left, top = len(names), 92, 30
    cell = min((_WIDTH - left - 10) / size, 110)
    parts: list[str] = []
    for i, row in enumerate(counts):
        total = sum(row) or 1
        y = top + i * cell
        parts.append(_label(left - 8, y + cell / 2 + 4, _short(names[i], 12), "end"))
        for j, count in enumerate(row):
            share = count / total
            colour = "var(--c1)" if i == j else "var(--bad)"
            parts.append(
                f'<rect x="{left + j * cell:.1f}" y="{y:.1f}" width="{cell - 1:.1f}" height="{cell - 1:.1f}"'
                f' fill="{colour}" fill-opacity="{0.06 + 0.5 * share:.2f}">'
                f"<title>{escape(names[i])} predicted as {escape(names[j])}: {count} ({share:.1%})</title></rect>"
            )
            if count:
                parts.append(_label(left + (j + 0.5) * cell - 0.5, y + cell / 2 + 4, str(count), kind="value"))
    for j, name in enumerate(names):
        parts.append(_label(left + (j + 0.5) * cell, top - 8, _short(name, max(1, int(cell / 6.5)))))
    height = top + size * cell + 24
    parts.append(_label(left + size * cell / 2, height - 4, x_label))
    middle = top + size * cell / 2
    parts.append(
        f'<text x="12" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 12 {middle:.1f})">'
        f"{escape(y_label)}</text>"
    )
    return _figure(title, parts, [], height=height)


def estimates(title: str, rows: Sequence[Estimate]) -> Html:
    """Return one small axis for each figure: its interval, the bound it must reach, the champion's value."""
    height, left, right = 46, 150, 70
    parts: list[str] = []
    for i, row in enumerate(rows):
        known = [row.value, row.low, row.high, row.bound, row.champion]
        low, high = _wider(_extent([v for v in known if v is not None]))
        pad = (high - low) * 0.08
        low, high = low - pad, high + pad
        middle = i * height + 24

        def at(value: float, low: float = low, high: float = high) -> float:
            return left + (value - low) / (high - low) * (_WIDTH - left - right)

        parts.append(_label(0, middle + 4, _short(row.name, 22), "start", "value"))
        parts.append(_line(left, middle, _WIDTH - right, middle, "var(--line)"))
        if row.low is not None and row.high is not None:
            parts.append(_line(at(row.low), middle, at(row.high), middle, COLOURS[0], width=5, opacity=0.45))
        if row.bound is not None:
            parts.append(_line(at(row.bound), middle - 11, at(row.bound), middle + 11, "var(--bad)", dashed=True))
        if row.champion is not None:
            x = at(row.champion)
            parts.append(
                f'<path d="M{x:.1f} {middle - 6} l6 6 l-6 6 l-6 -6 z" fill="none" stroke="{COLOURS[1]}"'
                f' stroke-width="2"><title>champion {number(row.champion)}</title></path>'
            )
        if math.isfinite(row.value):
            parts.append(f'<circle cx="{at(row.value):.1f}" cy="{middle}" r="4.5" fill="{COLOURS[0]}"/>')
        parts.append(_label(_WIDTH, middle + 4, number(row.value), "end", "value"))
    legend = [("this run, 95 % interval", COLOURS[0]), ("bound", "var(--bad)")]
    if any(row.champion is not None for row in rows):
        legend.append(("champion", COLOURS[1]))
    return _figure(title, parts, legend, height=height * max(len(rows), 1))


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers between `low` and `high`: steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """Return a figure with four significant digits at most."""
    if not math.isfinite(value):
        return "none"
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _wider(extent: tuple[float, float]) -> tuple[float, float]:
    """Return an extent that is not a point."""
    low, high = extent
    if high - low > 1e-12 * max(abs(low), abs(high), 1e-300):
        return low, high
    half = abs(low) * 0.05 or 0.5
    return low - half, high + half


def _extent(values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)]
    return (min(finite), max(finite)) if finite else (0.0, 1.0)


def _pairs(series: Series) -> list[tuple[float, float]]:
    pairs = zip(series.x, series.y, strict=True)
    return [(float(a), float(b)) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: max(length - 1, 1)]}…"


def _line(
    x1: float, y1: float, x2: float, y2: float, colour: str, dashed: bool = False, width: float = 1, opacity: float = 1
) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    thick = 2 if dashed else width
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"'
        f' stroke-width="{thick:g}" stroke-opacity="{opacity:g}"{dash}/>'
    )


def _label(x: float, y: float, words: str, anchor: str = "middle", kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{mark}>{escape(words)}</text>'


def _tick_name(x: float, name: str, tilted: bool) -> str:
    y = _HEIGHT - _BOTTOM + 16
    if not tilted:
        return _label(x, y, name)
    return (
        f'<text x="{x:.1f}" y="{y - 4}" text-anchor="end" transform="rotate(-35 {x:.1f} {y - 4})"'
        f' style="font-size:10px">{escape(_short(name, 11))}</text>'
    )


def _figure(title: str, parts: Sequence[str], legend: Sequence[tuple[str, str]], height: float = _HEIGHT) -> Html:
    marks = "".join(f'<span><i style="background:{colour}"></i>{text(name)}</span>' for name, colour in legend)
    shown = f'<div class="legend">{marks}</div>' if len(legend) > 1 else ""
    body = "\n".join(parts)
    return Html(
        f"<figure><figcaption>{text(title)}</figcaption>{shown}"
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(title, quote=True)}">\n{body}\n'
        "</svg></figure>"
    )
