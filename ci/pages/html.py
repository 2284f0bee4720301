"""Self-contained HTML pages: no script, no network, light and dark, and they print.

Text is escaped unless it is `Html`, which only the functions of this module and `ci.pages.charts` make.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

Mood = Literal["good", "bad", "warn", "plain"]


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


@dataclass(frozen=True)
class Section:
    """A titled part of a page; `note` is one sentence on how to read it."""

    title: str
    body: Html
    note: str = ""


def text(value: object) -> Html:
    """Return `value` as HTML: escaped unless it is Html already."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def join(*parts: Html) -> Html:
    """Return `parts` one after the other."""
    return Html("\n".join(parts))


def paragraph(value: object) -> Html:
    return Html(f"<p>{text(value)}</p>")


def code(value: object) -> Html:
    """Return `value` in a fixed-width font: digests, ids, commands."""
    return Html(f"<code>{text(value)}</code>")


def badge(value: object, mood: Mood = "plain") -> Html:
    """Return a small coloured label; the words carry the meaning, the colour only repeats it."""
    return Html(f'<span class="badge {mood}">{text(value)}</span>')


def link(value: object, address: str) -> Html:
    return Html(f'<a href="{escape(address, quote=True)}">{text(value)}</a>')


def table(header: Sequence[object], rows: Sequence[Sequence[object]], numeric: Sequence[int] = ()) -> Html:
    """Return a table; the columns whose positions are in `numeric` are right-aligned figures."""
    kinds = [' class="n"' if i in numeric else "" for i in range(len(header))]
    head = "".join(f'<th scope="col"{kind}>{text(cell)}</th>' for cell, kind in zip(header, kinds, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f"<td{kind}>{text(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    return Html(f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>')


def definitions(entries: Sequence[tuple[object, object]]) -> Html:
    """Return a list of names and values."""
    body = "\n".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in entries)
    return Html(f"<dl>\n{body}\n</dl>")


def tiles(entries: Sequence[tuple[object, object, object]]) -> Html:
    """Return large figures side by side: name, value, what it is measured against."""
    body = "\n".join(
        f'<div class="tile"><span>{text(name)}</span><b>{text(value)}</b><small>{text(note)}</small></div>'
        for name, value, note in entries
    )
    return Html(f'<div class="tiles">\n{body}\n</div>')


def grid(parts: Sequence[Html]) -> Html:
    """Return plots side by side where there is room."""
    body = "\n".join(parts)
    return Html(f'<div class="grid">\n{body}\n</div>')


def details(summary: object, body: Html) -> Html:
    """Return a part that opens on a click."""
    return Html(f"<details><summary>{text(summary)}</summary>\n{body}\n</details>")


def png(content: bytes, description: str) -> Html:
    """Return a PNG image inside the page."""
    data = base64.b64encode(content).decode()
    return Html(f'<figure><img alt="{escape(description, quote=True)}" src="data:image/png;base64,{data}"></figure>')


def page(
    title: str, sections: Sequence[Section], *, verdict: tuple[str, Mood] | None = None, subtitle: str = ""
) -> str:
    """Return a complete HTML document: heading with an optional verdict badge, then the sections."""
    label = f" {badge(*verdict)}" if verdict else ""
    under = f'<p class="subtitle">{text(subtitle)}</p>' if subtitle else ""
    parts: list[str] = []
    for section in sections:
        note = f'<p class="note">{text(section.note)}</p>' if section.note else ""
        parts.append(f"<section>\n<h2>{text(section.title)}</h2>\n{note}\n{section.body}\n</section>")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{text(title)}{label}</h1>{under}</header>\n{body}\n</main>\n</body>\n</html>\n"
    )


# The colours of series are told apart with the usual colour blindnesses (Okabe & Ito's blue and orange, adjusted
# for contrast on both grounds); --c1 is what the page is about, --c2 what it is compared with.
STYLE = """
:root { --ground: #ffffff; --panel: #f6f7f9; --ink: #1b1f24; --soft: #59636e; --line: #d8dde3;
  --good: #1a7f4b; --bad: #b3261e; --warn: #8a5a00; --c1: #0b66b8; --c2: #c7630a; --c3: #6f5bb5; --c4: #3f8f6b; }
@media (prefers-color-scheme: dark) { :root { --ground: #12161b; --panel: #1a2027; --ink: #e7ebef; --soft: #9aa6b2;
  --line: #323b45; --good: #4cc38a; --bad: #ff8a80; --warn: #e6b450; --c1: #5cb0ff; --c2: #ff9d4d; --c3: #b3a1ff;
  --c4: #6fd0a5; } }
@media print { :root { --ground: #fff; --panel: #fff; --ink: #000; --soft: #444; --line: #bbb; --good: #1a7f4b;
  --bad: #b3261e; --warn: #8a5a00; --c1: #0b66b8; --c2: #c7630a; --c3: #6f5bb5; --c4: #3f8f6b; }
  section, figure, tr { break-inside: avoid; } h2 { break-after: avoid; } main { max-width: none; padding: 0; }
  .scroll { overflow: visible; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  -webkit-print-color-adjust: exact; print-color-adjust: exact; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0; display: flex; gap: 12px; align-items: center; flex-wrap: wrap; }
h2 { font-size: 18px; margin: 36px 0 8px; padding-top: 14px; border-top: 1px solid var(--line); }
.subtitle, .note { color: var(--soft); margin: 4px 0 12px; max-width: 76ch; }
code { font: 13px/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
a { color: var(--c1); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; font-size: 13px; white-space: nowrap; }
.n { text-align: right; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
td { overflow-wrap: break-word; } td.n { overflow-wrap: normal; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; }
.badge { display: inline-block; border: 1px solid currentColor; border-radius: 999px; padding: 1px 10px;
  font-size: 13px; font-weight: 600; line-height: 1.5; white-space: nowrap; color: var(--soft); }
.badge.good { color: var(--good); } .badge.bad { color: var(--bad); } .badge.warn { color: var(--warn); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 12px; margin: 12px 0; }
.tile { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; }
.tile span, .tile small { display: block; color: var(--soft); font-size: 13px; }
.tile b { display: block; font-size: 22px; font-variant-numeric: tabular-nums; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 16px 28px; }
figure { margin: 8px 0; min-width: 0; } figcaption { font-weight: 600; font-size: 14px; margin-bottom: 4px; }
figure svg, figure img { width: 100%; height: auto; display: block; max-width: 760px; }
svg text { fill: var(--soft); font-size: 12px; } svg .value { fill: var(--ink); }
.legend { display: flex; gap: 4px 16px; flex-wrap: wrap; color: var(--soft); font-size: 13px; margin: 0 0 4px; }
.legend i { display: inline-block; width: 12px; height: 3px; border-radius: 2px; margin-right: 6px;
  vertical-align: middle; }
details { margin: 12px 0; } summary { cursor: pointer; color: var(--soft); }
"""
