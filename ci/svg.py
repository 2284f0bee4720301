"""Two small charts as inline SVG text: bars against a threshold, and two histograms over the same bins.

They are drawn as text because importing a plotting library would take longer than the whole drift check.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_BLUE, _ORANGE, _RED, _GREY = "#3b6ea8", "#d9822b", "#c0392b", "#777"
_FONT = 'font-family="system-ui, sans-serif" font-size="12"'


def bars(rows: Sequence[tuple[str, float, float | None, bool]], title: str) -> str:
    """Return horizontal bars of `rows` (name, effect, threshold, drifted); the threshold is a tick on its bar.

    All bars share one scale that ends at the largest effect or threshold.
    """
    left, width, line = 190, 420, 20
    top = max([1e-9, *(max(effect, threshold or 0) for _, effect, threshold, _ in rows)])
    parts: list[str] = []
    for i, (name, effect, threshold, drifted) in enumerate(rows):
        y = 6 + i * line
        colour = _RED if drifted else _BLUE
        parts.append(f'<text x="{left - 8}" y="{y + 11}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{effect / top * width:.1f}" height="14" fill="{colour}"/>')
        if threshold is not None:
            x = left + threshold / top * width
            parts.append(f'<path d="M{x:.1f} {y - 2}v18" stroke="#000" stroke-width="2"/>')
        parts.append(f'<text x="{left + width + 8}" y="{y + 11}" fill="{_GREY}">{effect:.3f}</text>')
    return _svg(left + width + 70, 10 + len(rows) * line, title, parts)


def histograms(names: Sequence[str], reference: Sequence[float], current: Sequence[float], title: str) -> str:
    """Return the shares of `reference` and `current` over the same bins as pairs of columns named `names`."""
    left, bottom, width, height = 40, 130, 320, 110
    top = max([1e-9, *reference, *current])
    step = width / max(len(names), 1)
    parts = [
        f'<text x="{left - 6}" y="{bottom - height + 4}" text-anchor="end" fill="{_GREY}">{top:.0%}</text>',
        f'<text x="{left - 6}" y="{bottom}" text-anchor="end" fill="{_GREY}">0</text>',
        f'<path d="M{left} {bottom}h{width}" stroke="{_GREY}"/>',
    ]
    for i, pair in enumerate(zip(reference, current, strict=True)):
        for j, (share, colour) in enumerate(zip(pair, (_BLUE, _ORANGE), strict=True)):
            x, tall = left + i * step + step * (0.1 + 0.4 * j), share / top * height
            size = f'width="{step * 0.4:.1f}" height="{tall:.1f}"'
            parts.append(f'<rect x="{x:.1f}" y="{bottom - tall:.1f}" {size} fill="{colour}"/>')
    shown = range(0, len(names), max(1, -(-len(names) // 5)))
    for i in shown:
        x = left + (i + 0.5) * step
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" fill="{_GREY}">{escape(names[i])}</text>'
        )
    parts.append(f'<text x="{left}" y="14">{escape(title)}</text>')
    return _svg(left + width + 10, bottom + 24, title, parts)


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    body = "".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(title)}" viewBox="0 0 {width:.0f} '
        f'{height:.0f}" width="{width:.0f}" style="max-width:100%" fill="#222" {_FONT}>{body}</svg>'
    )
