"""Parts of a self-contained HTML page: text, tables, pictures as data URIs; no script, no network.

Light and dark follow the reader's system, and the page prints. What comes from outside is escaped.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lafs_ray.messages import printable

_STYLE = """
:root{color-scheme:light dark;--text:#1c2126;--faint:#5b6670;--page:#fff;--panel:#f5f7f9;--line:#d5dbe1;--grid:#e4e8ec;
--c0:#1769aa;--c1:#c2410c;--c2:#15803d;--c3:#7e22ce;--c4:#a16207;--c5:#be185d;--c6:#0f766e;--c7:#57534e;
--warn:#9a3412;--warn-page:#fff4e6;--band:#15803d}
@media (prefers-color-scheme:dark){:root{--text:#e4e8ec;--faint:#a3adb7;--page:#14181c;--panel:#1d2329;--line:#39424b;
--grid:#2a3138;--c0:#63b3ed;--c1:#fb923c;--c2:#4ade80;--c3:#c084fc;--c4:#facc15;--c5:#f472b6;--c6:#2dd4bf;--c7:#d6d3d1;
--warn:#fdba74;--warn-page:#3a2410;--band:#4ade80}}
*{box-sizing:border-box}
body{margin:0 auto;padding:24px;max-width:1180px;background:var(--page);color:var(--text);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:26px;margin:0 0 4px}
h2{font-size:20px;margin:36px 0 8px;border-bottom:1px solid var(--line);padding-bottom:4px}
h3{font-size:16px;margin:20px 0 6px}p{margin:6px 0;max-width:860px}a{color:var(--c0)}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;margin:10px 0}
.faint,figcaption{color:var(--faint);font-size:13px}
.note{background:var(--warn-page);border-left:4px solid var(--warn);padding:6px 12px;margin:10px 0;max-width:860px}
.scroll{overflow-x:auto}table{border-collapse:collapse;margin:8px 0;font-size:14px}
th,td{padding:4px 10px;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{background:var(--panel);font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td{overflow-wrap:anywhere}code{font-family:ui-monospace,"DejaVu Sans Mono",monospace;font-size:13px}
.row{display:flex;flex-wrap:wrap;gap:18px;align-items:flex-start}
figure{margin:8px 0}figure img{display:block;max-width:100%;height:auto;border-radius:3px}
svg{display:block;max-width:100%;height:auto;font-size:12px}svg text{fill:var(--text)}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:13px}.legend i{display:inline-block;width:14px;height:3px;
vertical-align:middle;margin-right:5px}.legend i.dotted{height:0;border-top:2px dotted var(--warn)}
@media print{body{max-width:none;padding:0}nav{display:none}
figure,svg,tr,.note{break-inside:avoid}h2,h3{break-after:avoid}table{font-size:12px}}
"""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Args:
        title: heading, also in the list of contents.
        content: HTML.
    """

    title: str
    content: str


def escape(value: Any) -> str:
    """Escape text for HTML; secrets in it are masked."""
    return html.escape(printable(str(value)))


def page(title: str, subtitle: str, sections: Iterable[Section]) -> bytes:
    """Return the complete page as UTF-8.

    Args:
        title: plain text.
        subtitle: plain text.
        sections: without those that are empty.
    """
    shown = [section for section in sections if section.content]
    links = "".join(f'<a href="#s{n}">{escape(one.title)}</a>' for n, one in enumerate(shown))
    body = "".join(
        f'<section id="s{n}"><h2>{escape(one.title)}</h2>{one.content}</section>' for n, one in enumerate(shown)
    )
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{_STYLE}</style></head><body>'
        f'<h1>{escape(title)}</h1><p class="faint">{escape(subtitle)}</p><nav>{links}</nav>{body}</body></html>\n'
    )
    return text.encode()


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text; kind is "", "faint" or "note"."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{escape(text)}</p>" if text else ""


def notes(texts: Iterable[str]) -> str:
    """Return a highlighted paragraph for each text."""
    return "".join(paragraph(text, "note") for text in texts)


def heading(text: str) -> str:
    """Return a heading within a section."""
    return f"<h3>{escape(text)}</h3>"


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table; numbers are aligned to the right, None is a dash.

    Args:
        headings: of the columns.
        rows: str, int, float (four decimals) or None.
    """
    cells = [list(row) for row in rows]
    if not cells:
        return ""
    is_number = [all(isinstance(row[n], int | float | None) for row in cells) for n in range(len(headings))]
    kinds = [' class="n"' if number else "" for number in is_number]
    head = "".join(f"<th{kind}>{escape(text)}</th>" for kind, text in zip(kinds, headings, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{_cell(value)}</td>" for kind, value in zip(kinds, row, strict=True)) + "</tr>"
        for row in cells
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else escape(value)


def row(parts: Iterable[str]) -> str:
    """Return parts beside each other, as many as fit."""
    return f'<div class="row">{"".join(parts)}</div>'


def figure(content: str, caption: str) -> str:
    """Return a picture or drawing with its caption."""
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def picture(pixels: NDArray[np.uint8], description: str, width: int | None = None) -> str:
    """Return pixels as an embedded JPEG.

    Args:
        pixels: uint8 [H, W, 3] RGB.
        description: for readers who do not see it.
        width: shown, in pixels; None: its own.
    """
    encoded, data = cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 88])
    assert encoded, "OpenCV was built without JPEG"
    text = base64.b64encode(data.tobytes()).decode()
    height, own = pixels.shape[:2]
    shown = width or own
    return (
        f'<img src="data:image/jpeg;base64,{text}" alt="{escape(description)}" width="{shown}" '
        f'height="{round(height * shown / own)}">'
    )


def contact_sheet(images: NDArray[np.uint8], columns: int, gap: int = 2) -> NDArray[np.uint8]:
    """Arrange faces [B, S, S, 3] in rows on a gray ground."""
    rows, side = -(-len(images) // columns), images.shape[1]
    step = side + gap
    sheet = np.full((rows * step - gap, min(columns, len(images)) * step - gap, 3), 128, np.uint8)
    for number, image in enumerate(images):
        y, x = divmod(number, columns)
        sheet[y * step : y * step + side, x * step : x * step + side] = image
    return sheet
