"""The few shapes that the report's pictures are made of, as SVG text; colours come from the page's style sheet."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def picture(width: float, height: float, parts: Iterable[str], label: str) -> str:
    """A picture that scales down with the page; ``label`` is what it shows, for readers that cannot see it."""
    frame = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" aria-label="{escape(label)}"'
    return f"<svg {frame}>{''.join(parts)}</svg>"


def rect(x: float, y: float, width: float, height: float, css: str, title: str = "", opacity: float = 1.0) -> str:
    """A box; its title shows when the pointer rests on it."""
    shade = "" if opacity == 1.0 else f' fill-opacity="{opacity:.2f}"'
    shape = f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" class="{css}"{shade}'
    return f"<rect {shape}/>" if not title else f"<rect {shape}><title>{escape(title)}</title></rect>"


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """A straight line."""
    return f'<line x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}" class="{css}"/>'


def path(points: Iterable[tuple[float, float]], css: str) -> str:
    """A line through points."""
    text = " L".join(f"{x:.2f} {y:.2f}" for x, y in points)
    return f'<path d="M{text}" class="{css}"/>' if text else ""


def dot(x: float, y: float, radius: float, css: str, title: str) -> str:
    """A circle with a title."""
    return f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{radius:g}" class="{css}"><title>{escape(title)}</title></circle>'


def cross(x: float, y: float, size: float, css: str, title: str) -> str:
    """A small × with a title."""
    left, right, top, bottom = (f"{n:.2f}" for n in (x - size, x + size, y - size, y + size))
    arms = f"M{left} {top}L{right} {bottom}M{left} {bottom}L{right} {top}"
    return f'<path d="{arms}" class="{css}"><title>{escape(title)}</title></path>'


def text(x: float, y: float, words: str, css: str = "label", anchor: str = "start") -> str:
    """Words; ``anchor`` is start, middle or end."""
    return f'<text x="{x:.2f}" y="{y:.2f}" class="{css}" text-anchor="{anchor}">{escape(words)}</text>'


def turned(x: float, y: float, words: str) -> str:
    """Words from bottom to top, centred."""
    place = f'transform="translate({x:.2f} {y:.2f}) rotate(-90)" class="label" text-anchor="middle"'
    return f"<text {place}>{escape(words)}</text>"
