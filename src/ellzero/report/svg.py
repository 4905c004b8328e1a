"""Small pieces of SVG; everything that enters a tag is escaped here."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence

from ellzero.report.words import clean

_NARROW = set("iljtf.,:;'|!()[]I1 ")
_WIDE = set("mwMW%@")

MARKERS = ("circle", "square", "triangle", "diamond", "cross", "plus")


def coordinate(value: float) -> str:
    """Return a coordinate with one decimal at most."""
    text = f"{value:.1f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def tag(tag_name: str, content: str = "", /, **attributes: str | float) -> str:
    """Return an element; `content` is finished markup, attribute values are escaped."""
    parts = [tag_name]
    for key, value in attributes.items():
        text = coordinate(value) if isinstance(value, int | float) else value
        parts.append(f'{key.rstrip("_").replace("_", "-")}="{html.escape(text, quote=True)}"')
    opening = " ".join(parts)
    return f"<{opening}>{content}</{tag_name}>" if content else f"<{opening}/>"


def label(x: float, y: float, content: str, kind: str = "", **attributes: str | float) -> str:
    """Return a text element; `kind` is its class."""
    if kind:
        attributes["class_"] = kind
    return tag("text", html.escape(clean(content)), x=x, y=y, **attributes)


def titled(title: str, content: str) -> str:
    """Return a mark with the words that are shown when it is pointed at."""
    return tag("g", tag("title", html.escape(clean(title))) + content, class_="m")


def polyline(points: Sequence[tuple[float, float]]) -> str:
    """Return path data through the points, with relative moves to stay small."""
    if not points:
        return ""
    # Sums of rounded moves drift; each move starts from the rounded position.
    x, y = (round(v, 1) for v in points[0])
    parts = [f"M{coordinate(x)} {coordinate(y)}"]
    for px, py in points[1:]:
        dx, dy = round(px - x, 1), round(py - y, 1)
        parts.append(f"l{coordinate(dx)} {coordinate(dy)}")
        x, y = x + dx, y + dy
    return "".join(parts)


def marker(shape: str, x: float, y: float, kind: str, radius: float = 4.0) -> str:
    """Return a mark of one of `MARKERS`, or "left", "right" for arrows."""
    r = radius
    if shape == "circle":
        return tag("circle", cx=x, cy=y, r=r, class_=kind)
    data = {
        "square": f"h{r * 1.7}v{r * 1.7}h{-r * 1.7}z",
        "triangle": f"l{r * 1.15} {r * 2}h{-r * 2.3}z",
        "diamond": f"l{r * 1.3} {r * 1.3}l{-r * 1.3} {r * 1.3}l{-r * 1.3} {-r * 1.3}z",
        "cross": f"l{r * 1.6} {r * 1.6}m0 {-r * 1.6}l{-r * 1.6} {r * 1.6}",
        "plus": f"v{r * 2.2}m{-r * 1.1} {-r * 1.1}h{r * 2.2}",
        "right": f"l{r * 2} {r * 1.15}l{-r * 2} {r * 1.15}z",
        "left": f"l{-r * 2} {r * 1.15}l{r * 2} {r * 1.15}z",
    }[shape]
    dx, dy = {
        "square": (-0.85 * r, -0.85 * r),
        "triangle": (0.0, -1.2 * r),
        "diamond": (0.0, -1.3 * r),
        "cross": (-0.8 * r, -0.8 * r),
        "plus": (0.0, -1.1 * r),
        "right": (-0.8 * r, -1.15 * r),
        "left": (0.8 * r, -1.15 * r),
    }[shape]
    return tag("path", d=f"M{coordinate(x + dx)} {coordinate(y + dy)}{data}", class_=kind)


def text_width(content: str, size: float) -> float:
    """Return about how wide text is in a system font, a little on the large side."""
    total = 0.0
    for c in content:
        if unicodedata.east_asian_width(c) in "WF":
            total += 1.0
        elif c in _NARROW:
            total += 0.38
        elif c in _WIDE:
            total += 0.9
        elif c.isupper():
            total += 0.7
        else:
            total += 0.62
    return total * size


def shorten(content: str, size: float, room: float) -> str:
    """Return text that fits into `room`; long names lose their middle, as ends tell them apart."""
    content = clean(content)
    if text_width(content, size) <= room:
        return content
    for kept in range(len(content) - 1, 1, -1):
        tail = (2 * kept) // 5
        cut = content[: kept - tail].rstrip() + "…" + content[len(content) - tail :].lstrip()
        if text_width(cut, size) <= room:
            return cut
    return "…"


def picture(width: float, height: float, title: str, description: str, body: str) -> str:
    """Return the svg element with its title and description."""
    words = html.escape(clean(title))
    return tag(
        "svg",
        tag("title", words) + tag("desc", html.escape(clean(description))) + body,
        viewBox=f"0 0 {coordinate(width)} {coordinate(height)}",
        width=width,
        height=height,
        role="img",
        aria_label=clean(f"{title}. {description}"),
    )
