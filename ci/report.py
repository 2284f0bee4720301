"""The gate's evidence as one HTML file; also the door to the page and plot helpers for other reports."""

from __future__ import annotations

from ci.charts import Estimate, Series, bars, estimates, heat_map, lines, points
from ci.html import (
    Html,
    Section,
    badge,
    code,
    definitions,
    details,
    grid,
    join,
    link,
    page,
    paragraph,
    png,
    table,
    text,
    tiles,
)

__all__ = [
    "Estimate",
    "Html",
    "Section",
    "Series",
    "badge",
    "bars",
    "code",
    "definitions",
    "details",
    "estimates",
    "grid",
    "heat_map",
    "join",
    "lines",
    "link",
    "page",
    "paragraph",
    "png",
    "points",
    "table",
    "text",
    "tiles",
]
