"""Printed expressions, and what the functions that print them ask of the printer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sparsec.backends.triton.descriptors import Descriptor
from sparsec.tile.language import Axis, Node

_WIDTH = 110


@dataclass(frozen=True, slots=True)
class Text:
    """An expression, whether it needs brackets inside another one, and whether it is a product."""

    text: str
    infix: bool = False
    product: bool = False

    @property
    def closed(self) -> str:
        """Safe as an operand."""
        return f"({self.text})" if self.infix else self.text

    @property
    def summand(self) -> str:
        """Safe as an operand of + and -."""
        return self.text if self.product else self.closed


class Speaker(Protocol):
    """The printer, seen by the functions that print one op."""

    boxes: dict[int, Descriptor]
    helpers: set[str]

    def text(self, node: Node) -> Text:
        """How readers write a node."""
        ...

    def at(self, node: Node, to: tuple[Axis, ...]) -> Text:
        """A node as an operand whose dimensions are the axes ``to``."""
        ...


def dtype_name(dtype: str) -> str:
    """A tile dtype in Triton's language."""
    return "tl.int1" if dtype == "bool" else f"tl.{dtype}"


def sizes(axes: tuple[Axis, ...]) -> str:
    """A shape."""
    return "[" + ", ".join(str(axis.size) for axis in axes) + "]"


def wrapped(line: str) -> list[str]:
    """A long call as one argument a line, and what long brackets hold as a line of its own; anything else as it is."""
    indent = line[: len(line) - len(line.lstrip())]
    opening = line.find("(")
    if len(line) <= _WIDTH or opening < 0 or closing(line, opening) != len(line) - 1:
        return [line]
    comma = "," if line[opening - 1].isidentifier() or line[opening - 1].isdigit() else ""  # else it makes a tuple
    arguments = [f"{indent}    {a}{comma}" for a in split_arguments(line[opening + 1 : -1])]
    return [line[: opening + 1], *arguments, f"{indent})"]


def closing(line: str, opening: int) -> int:
    """The position of the bracket that closes the one at ``opening``."""
    depth = 0
    for position in range(opening, len(line)):
        depth += (line[position] in "([") - (line[position] in ")]")
        if depth == 0:
            return position
    raise AssertionError(f"unbalanced brackets in {line!r}")


def split_arguments(text: str) -> list[str]:
    """The arguments of a call, cut at its own commas."""
    parts, depth, start = [], 0, 0
    for position, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    return [*parts, text[start:].strip()]
