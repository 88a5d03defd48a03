"""Printing: one JSON value, or text and tables as wide as they need to be."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Where results go; lines are never broken, so that they can be piped."""
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False, markup=False)


def say(text: str, style: str | None = None) -> None:
    """Text as it is."""
    console().print(text, style=style)


def print_json(value: object) -> None:
    """One JSON value."""
    print(json.dumps(value, indent=1, default=str))


def table(head: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """A plain table; the last column takes what room is left and wraps."""
    from rich.console import Console
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for n, name in enumerate(head):
        made.add_column(name, overflow="fold", no_wrap=n < len(head) - 1)
    for row in rows:
        made.add_row(*(str(cell) for cell in row))
    Console(highlight=False, markup=False).print(made)
