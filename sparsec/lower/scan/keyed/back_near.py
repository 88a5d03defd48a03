"""Gradients of rows and columns through what they see of their own chunk.

What pairs of tokens give to slopes of decays must cancel between rows and columns, where no decay lies between the
pair and the token that asks: so x dx and y dy are products of the very operands that dx and dy were made of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk.parts import power_of_two
from sparsec.lower.scan.keyed.back_sums import Squares
from sparsec.lower.scan.keyed.fades import Fades
from sparsec.lower.scan.keyed.sides import Side
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node

_OPERANDS = {"float32": "float32"}
"""Dtypes of operands by that of keys: bf16, as factors may be as large as 2^50."""


@dataclass(frozen=True, slots=True)
class Near:
    """One chunk of one head, some key dims."""

    fades: Fades
    squares: Squares

    def row(self, side: Side) -> tuple[Node, Node]:
        """Σ_y dA_xy y e^{Γ_i − Γ_j} ``[c,d]``, and x times it."""
        f = self.fades
        if f.exact:
            made = self._row_by_columns(side)
            return made, mul(f.vectors(side), made)
        found: Node | None = None
        for column in f.keyed.columns:
            y = tile.rename(self._y(column), f.at.rows, f.at.columns)
            found = tile.dot(self._operand(self.squares[side.name, column.name]), y, f.at.columns, found)
        assert found is not None
        return mul(found, f.of_row(side)), mul(tile.cast(self._x(side), "float32"), found)

    def column(self, side: Side) -> tuple[Node, Node]:
        """Σ_x dA_xyᵀ x e^{Γ_i − Γ_j} ``[c,d]``, of the chunk's tokens as columns, and y times it."""
        f = self.fades
        if f.exact:
            made = self._column_by_rows(side)
            return made, mul(f.vectors(side), made)
        found: Node | None = None
        for row in f.keyed.rows:
            found = tile.dot(self._operand(self.squares[row.name, side.name]), self._x(row), f.at.rows, found)
        assert found is not None
        made = tile.rename(found, f.at.columns, f.at.rows)
        return mul(made, f.of_column()), mul(tile.cast(self._y(side), "float32"), made)

    def _x(self, side: Side) -> Node:
        return self._operand(mul(self.fades.vectors(side), self.fades.of_row(side)))

    def _y(self, side: Side) -> Node:
        return self._operand(mul(self.fades.vectors(side), self.fades.of_column()))

    def _operand(self, x: Node) -> Node:
        return tile.cast(x, _OPERANDS.get(self.fades.keyed.own.writes.half, "bfloat16"))

    def _row_by_columns(self, side: Side) -> Node:
        """The same column by column."""
        f = self.fades
        since = f.since(side)

        def visit(j: Node, sums: Node, total: Node) -> Sequence[Node]:
            token = self._token(j)
            sums = add(sums, f.steps(token))
            fade = power_of_two(sub(since, sums))
            for column in f.keyed.columns:
                mine = _one(self.squares[side.name, column.name], f.at.columns, j)
                total = add(total, mul(mul(mine, f.vectors(column, token)), fade))
            return [sums, total]

        return self._walked(visit)

    def _column_by_rows(self, side: Side) -> Node:
        """The same row by row."""
        f = self.fades
        all_sums = f.sums()

        def visit(i: Node, sums: Node, total: Node) -> Sequence[Node]:
            token = self._token(i)
            step = f.steps(token)
            sums = add(sums, step)
            for row in f.keyed.rows:
                fade = power_of_two(sub(sub(sums, step) if row.shifted else sums, all_sums))
                mine = _one(self.squares[row.name, side.name], f.at.rows, i)
                mine = tile.rename(mine, f.at.columns, f.at.rows)
                total = add(total, mul(mul(mine, f.vectors(row, token)), fade))
            return [sums, total]

        return self._walked(visit)

    def _token(self, number: Node) -> Node:
        chunk = self.fades.chunk
        return add(mul(chunk.number, chunk.own.chunk), number)

    def _walked(self, visit: Callable[..., Sequence[Node]]) -> Node:
        f = self.fades
        inits = [tile.full(0.0, f.at.dims), tile.full(0.0, f.at.rows, f.at.dims)]
        return tile.loop(0, f.chunk.own.chunk, 1, inits, visit)[1]


def _one(square: Node, over: Axis, number: Node) -> Node:
    """One row or column of a square matrix."""
    return tile.reduce("sum", tile.apply(Fn.WHERE, tile.apply(Fn.EQ, tile.iota(over), number), square, 0.0), over)
