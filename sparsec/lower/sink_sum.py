"""The last step of sinks' gradients: minus the sum over batch and tiles of rows, always in the same order."""

from __future__ import annotations

from sparsec.lower.lowered import Scratch
from sparsec.lower.scalars import add, ceil_div, mul, sub
from sparsec.scalar.expr import constant, var
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor

PARAMS = [(name, "int32") for name in ("B", "TQ", "TK", "q_offset")]
PARTS = 128
"""Partial sums of a sink that are read at once."""


def shares(name: str, heads: int) -> Tensor:
    """A sum per head, batch entry and tile of rows."""
    return Tensor(f"{name}_shares", "float32", (heads, "B", "QT"))


def scratch(name: str, heads: int, rows: int) -> Scratch:
    """The buffer of the sums, for tiles of so many rows."""
    tiles = (var("TQ") + (rows - 1)) // rows
    return Scratch(shares(name, heads).name, (constant(heads), var("B"), tiles), "float32")


def program(name: str, sink_grad: str, heads: int, rows: int) -> Program:
    """One head per grid point."""
    with tile.Builder() as builder:
        parts, read_from = builder.axis("p", PARTS), shares(name, heads)
        out = Tensor(sink_grad, "float32", (heads,))
        head, tiles = tile.program_id(0), ceil_div(tile.param("TQ"), rows)
        groups = ceil_div(tiles, PARTS)

        def visit(n: Node, total: Node) -> list[Node]:
            batch = tile.apply(Fn.TRUNCDIV, n, groups)
            number = add(mul(tile.apply(Fn.TRUNCMOD, n, groups), PARTS), tile.iota(parts))
            return [add(total, tile.load(read_from, head, batch, number, bounds={2: tiles}))]

        (total,) = tile.loop(0, mul(groups, tile.param("B")), 1, [tile.full(0.0, parts)], visit)
        tile.store(out, head, value=sub(tile.const(0.0), tile.reduce("sum", total, parts)))
        return builder.program(f"{name}_sinks", [read_from, out], PARAMS, [tile.const(heads)])
