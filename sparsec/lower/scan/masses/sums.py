"""Masses between chunks: what each chunk adds, and the mass before each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower.scalars import add, ceil_div, most, mul, sub
from sparsec.lower.scan.chunk.operands import times
from sparsec.lower.scan.chunk.parts import CHUNKS, power, power_of_two
from sparsec.lower.scan.masses.level import Level
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor

TOGETHER = 64
"""Chunks that a program carries on at once."""

COLUMNS = 32
"""Columns of a mass per program."""

PRECISION = "tf32x3"
"""Of products of fp32 here."""


def lower_leaves(level: Level) -> Program:
    """Σ_n e^{Γ_C − Γ_n} beta_n k_n of every chunk."""
    own = level.own
    with tile.Builder() as builder:
        tokens, dims, at = builder.axis("n", own.chunk), builder.axis("d", power(level.dim)), level.chunk()
        found = tile.cast(level.rows(at, tokens, dims), "float32")
        weight = times(at.left(tokens), at.beta(tokens))
        found = found if weight is None else mul(found, weight)
        total = tile.reduce("sum", found, tokens)
        tile.store(level.sums, at.batch, at.head, at.number, tile.iota(dims), value=total)
        tensors = [*level.touched(queries=False), level.sums, *own.betas()] + [own.sums] * own.decays
        return level.program(builder, "leaves", tensors)


@dataclass(frozen=True, slots=True)
class _Row:
    """Chunks in the order in which they are carried on; those past the last change nothing.

    Attributes:
        added: what each chunk adds ``[B,HKV,chunks,dim]``.
        back: from the last to the first.
    """

    level: Level
    added: Tensor
    back: bool

    @property
    def at(self) -> tuple[Node, Node]:
        """Batch entry and head."""
        return tile.program_id(2), tile.program_id(1)

    def there(self, number: Node) -> Node:
        """Whether there are so many chunks."""
        return tile.apply(Fn.LT, number, tile.param(CHUNKS))

    def place(self, number: Node, other: Node | int) -> Node:
        """Which chunk has a number; ``other`` past the last."""
        found = sub(sub(tile.param(CHUNKS), 1), number) if self.back else number
        return tile.apply(Fn.WHERE, self.there(number), found, other)

    def total(self, number: Node) -> Node:
        """The decay over a chunk."""
        own = self.level.own
        last = add(mul(self.place(number, 0), own.chunk), own.chunk - 1)
        return tile.apply(Fn.WHERE, self.there(number), tile.load(own.sums, *self.at, last), 0.0)

    def adds(self, number: Node, column: Node) -> Node:
        """What it adds."""
        found = tile.load(self.added, *self.at, self.place(number, 0), column)
        return tile.apply(Fn.WHERE, self.there(number), found, 0.0)

    def left(self, first: Node, rows: Axis, others: Axis) -> tuple[Node, Node]:
        """Of chunks from ``first`` on: what is left before one of them of what was there before all ``[i]``, and of
        what another one adds ``[i,j]``."""
        mine, yours = tile.iota(rows), tile.iota(others)
        earlier = tile.apply(Fn.LT, yours, mine)
        if not self.level.own.decays:
            return tile.full(1.0, rows), tile.apply(Fn.WHERE, earlier, tile.full(1.0, rows, others), 0.0)
        before = tile.apply(Fn.WHERE, tile.apply(Fn.LT, 0, mine), self.total(most(add(first, sub(mine, 1)), 0)), 0.0)
        between = tile.apply(Fn.WHERE, tile.apply(Fn.LT, yours, sub(mine, 1)), before, 0.0)
        apart = power_of_two(tile.scan(between, rows))
        return power_of_two(tile.scan(before, rows)), tile.apply(Fn.WHERE, earlier, apart, 0.0)

    def ahead(self, group: Node, rows: Axis, column: Node) -> Node:
        """The mass ``[d]`` before some chunks, of the groups of chunks before theirs, the last first."""
        size, decays = rows.size, self.level.own.decays

        def visit(step: Node, mass: Node, gone: Node) -> Sequence[Node]:
            number = sub(sub(mul(sub(group, step), size), 1), tile.iota(rows))
            later = tile.apply(Fn.WHERE, tile.apply(Fn.LT, 0, tile.iota(rows)), self.total(add(number, 1)), 0.0)
            found = self.adds(number, column)
            if decays:
                found = mul(power_of_two(tile.apply(Fn.ADD, tile.scan(later, rows), gone)), found)
                gone = tile.apply(Fn.ADD, gone, tile.reduce("sum", self.total(number), rows))
            return [tile.apply(Fn.ADD, mass, tile.reduce("sum", found, rows)), gone]

        start = [tile.full(0.0, column.axes[0]), tile.const(0.0)]
        return tile.loop(0, group, 1, start, visit)[0]


def lower_starts(level: Level, added: Tensor, made: Tensor, name: str, back: bool = False) -> Program:
    """The mass before each chunk; ``back``: the gradient of that after each, of what chunks after it add.

    With τ the decay over a chunk and a what it adds, the mass before the i-th of some chunks is
    e^{τ_0 + … + τ_{i−1}} z_0 + Σ_{j < i} e^{τ_{j+1} + … + τ_{i−1}} a_j. One (chunks and columns, head, batch) per
    grid point, which adds up all chunks before its own: that takes less time than to wait for another.
    """
    own, row = level.own, _Row(level, added, back)
    with tile.Builder() as builder:
        rows, others = builder.axis("i", TOGETHER), builder.axis("j", TOGETHER)
        dims = builder.axis("d", min(COLUMNS, power(level.dim)))
        tiles = -(-power(level.dim) // dims.size)
        column = add(mul(tile.apply(Fn.TRUNCMOD, tile.program_id(0), tiles), dims.size), tile.iota(dims))
        group = tile.apply(Fn.TRUNCDIV, tile.program_id(0), tiles)
        first, state = mul(group, TOGETHER), row.ahead(group, rows, column)
        since, apart = row.left(first, rows, others)
        adds = row.adds(add(first, tile.iota(others)), column)
        found = tile.dot(apart, adds, others, mul(since, state), PRECISION)
        place = row.place(add(first, tile.iota(rows)), tile.param(CHUNKS))
        tile.store(made, *row.at, place, column, value=found, bounds={2: tile.param(CHUNKS)})
        grid = (mul(ceil_div(tile.param(CHUNKS), TOGETHER), tiles), own.writes.heads, tile.param("B"))
        return own.program(builder, name, [added, made, *[own.sums] * own.decays], grid)
