"""Source text: an indenting writer, and arithmetic on index texts that folds plain numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Writer:
    """Collects lines; ``with block(header)`` is the indentation."""

    def __init__(self, depth: int = 0) -> None:
        self.lines: list[str] = []
        self._depth = depth

    def line(self, text: str) -> None:
        """One line at the present depth."""
        self.lines.append("    " * self._depth + text)

    @contextmanager
    def block(self, header: str) -> Iterator[None]:
        """The lines written inside stand below ``header``."""
        self.line(header)
        self._depth += 1
        before = len(self.lines)
        yield
        if len(self.lines) == before:
            self.line("pass")
        self._depth -= 1


def is_number(text: str) -> bool:
    """Whether an index text is an integer literal."""
    return text.lstrip("-").isdigit()


def plus(*terms: str) -> str:
    """The sum of index texts; numbers are added up and come last."""
    known = sum(int(t) for t in terms if is_number(t))
    parts = [t for t in terms if not is_number(t)]
    if not parts:
        return str(known)
    if known:
        parts.append(str(known))
    return " + ".join(parts).replace("+ -", "- ")


def times(a: str, b: str | int) -> str:
    """The product of two index texts."""
    b = str(b)
    if is_number(a) and is_number(b):
        return str(int(a) * int(b))
    if "0" in (a, b):
        return "0"
    if "1" in (a, b):
        return b if a == "1" else a
    return f"{grouped(a)} * {grouped(b)}"


def grouped(text: str) -> str:
    """The text in parentheses where an operator next to it would split it."""
    depth = 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if depth == 0 and letter == " ":
            return f"({text})"
    return text
