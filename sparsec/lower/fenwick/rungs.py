"""What the programs of a ladder share: its tensors, its scratch, and where blocks of chunks lie.

Chunk c and block i of level j, the chunks i·2^j … (i+1)·2^j − 1: a chunk with bit j set reads the block before its own
at level j, (c >> j) − 1, which is even and ends at chunk n = (c >> j) << j. So n names what is read: every n > 0 is the
end of one block that others read, of level ctz(n). Such blocks are kept at n − 1 in the order of their ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsec.lower.scalars import add, mul
from sparsec.lower.scan.chunk import factors, strengths
from sparsec.lower.scan.chunk.parts import CHUNKS, PADDED, SEGMENTS, SPAN, Chunk, Chunked
from sparsec.plan.states.fenwick_specs import Ladder
from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Tensor

BLOCKS = "LADDER_BLOCKS_"
"""What the launch parameters with the number of blocks of each level begin with."""

TOGETHER = 2
"""The level of the blocks that one program makes of chunks, where their transitions are numbers."""


@dataclass(frozen=True, slots=True)
class Rungs:
    """A ladder in chunks of ``own.chunk`` tokens."""

    spec: Ladder
    own: Chunked

    @property
    def inner(self) -> int:
        """Levels inside a chunk."""
        return min(self.own.chunk.bit_length(), self.spec.levels)

    @property
    def outer(self) -> int:
        """Levels of whole chunks."""
        return self.spec.levels - self.inner

    @property
    def first(self) -> int:
        """The lowest level whose blocks are all kept; of those below, which one program makes, only what is read is."""
        return min(1 if self.own.delta else TOGETHER, self.outer)

    @property
    def lowest(self) -> int:
        """The lowest level whose blocks have gradients of their own; those of a number's chunks find theirs."""
        return 0 if self.own.delta else self.first

    @property
    def fading(self) -> bool:
        """Whether transitions are decays."""
        return self.own.decays and not self.own.delta

    @property
    def queries(self) -> Tensor:
        """``[B,N,H,D]``."""
        return self.own.tensor(self.spec.read.q, self.spec.read.heads, self.own.writes.rows)

    @property
    def keys(self) -> Tensor:
        """``[B,N,HKV,D]``."""
        return self.own.tensor(self.own.writes.k, self.own.writes.heads, self.own.writes.rows)

    @property
    def values(self) -> Tensor:
        """``[B,N,HKV,DV]``."""
        return self.own.tensor(self.own.writes.v, self.own.writes.heads, self.own.writes.cols)

    @property
    def gate(self) -> Tensor:
        """``[B,N,H,levels]``."""
        return self.own.tensor(self.spec.gate, self.spec.read.heads, self.spec.levels)

    def _blocks(self, name: str, level: int, dtype: str, *dims: int) -> Tensor:
        count = CHUNKS if level == 0 else f"{BLOCKS}{level}"
        return Tensor(f"{self.own.name}_{name}{level}", dtype, ("B", self.own.writes.heads, count, *dims))

    def states(self, level: int) -> Tensor:
        """What each block makes of a zero state, fp32 ``[B,HKV,blocks,D,DV]``."""
        return self._blocks("states", level, "float32", self.own.writes.rows, self.own.writes.cols)

    def moves(self, level: int) -> Tensor:
        """What each block of a delta rule makes of a unit matrix, in the keys' dtype ``[B,HKV,blocks,D,D]``."""
        return self._blocks("moves", level, self.own.writes.k.dtype, self.own.writes.rows, self.own.writes.rows)

    def fades(self, level: int) -> Tensor:
        """The decay over each block, a base-2 logarithm, fp32 ``[B,HKV,blocks]``."""
        return self._blocks("fades", level, "float32")

    def _read(self, name: str, dtype: str, *dims: int) -> Tensor:
        return Tensor(f"{self.own.name}_{name}", dtype, ("B", self.own.writes.heads, CHUNKS, *dims))

    @property
    def read_states(self) -> Tensor:
        """States of the blocks that others read, by their ends, in the dtype of the keys."""
        return self._read("read_states", self.own.writes.k.dtype, self.own.writes.rows, self.own.writes.cols)

    @property
    def read_moves(self) -> Tensor:
        """Transitions of the same blocks."""
        return self._read("read_moves", self.own.writes.k.dtype, self.own.writes.rows, self.own.writes.rows)

    @property
    def read_fades(self) -> Tensor:
        """Decays of the same blocks."""
        return self._read("read_fades", "float32")

    def carried(self) -> list[Tensor]:
        """What of the blocks that are read programs of chunks load."""
        own = self.own
        return [self.read_states] + [self.read_moves] * own.delta + [self.read_fades] * self.fading

    def scratch(self) -> list[Tensor]:
        """All buffers between the programs of the forward."""
        own = self.own
        found = [own.sums] * own.decays + [own.rates] * own.rated + strengths.halves_of(own) + factors.tensors(own)
        found += [own.solved] * own.delta
        if not self.outer:
            return found
        for level in range(self.first, self.outer):
            found += [self.states(level)] + [self.moves(level)] * own.delta + [self.fades(level)] * self.fading
        return found + self.carried()

    def params(self) -> tuple[tuple[str, Expr], ...]:
        """The launch parameters beyond the spec's."""
        chunks = (var(self.own.writes.length) + (self.own.chunk - 1)) // self.own.chunk
        blocks = ((f"{BLOCKS}{n}", (chunks + ((1 << n) - 1)) // (1 << n)) for n in range(1, self.outer))
        return (CHUNKS, chunks), (SEGMENTS, constant(1)), (SPAN, chunks), (PADDED, chunks * self.own.chunk), *blocks

    def complete(self, level: int) -> Node:
        """How many blocks of a level have all their chunks."""
        return shifted(tile.param(CHUNKS), level)

    def weight(self, chunk: Chunk, tokens: Axis, level: Node | int) -> Node:
        """One level's weights of a chunk's queries, 0 past the last token."""
        bounds: dict[int, tile.Value] = {1: tile.param(self.own.writes.length)}
        return tile.load(self.gate, chunk.batch, chunk.token(tokens), chunk.head, level, bounds=bounds)

    def among(self, chunk: Chunk, queries: Axis, keys: Axis) -> Node:
        """The weights of a chunk's queries for its own tokens ``[c,n]``; of later tokens as of earlier ones."""
        apart = distance(queries, keys)
        found = self.weight(chunk, queries, self.inner - 1)
        for level in range(self.inner - 2, -1, -1):
            found = tile.apply(
                Fn.WHERE, tile.apply(Fn.LT, apart, 1 << level), self.weight(chunk, queries, level), found
            )
        return found


def distance(queries: Axis, keys: Axis) -> Node:
    """c xor n ``[c,n]``, whose bit length is the level."""
    return tile.apply(Fn.XOR, tile.iota(queries), tile.iota(keys))


def shifted(x: Node, by: Node | int) -> Node:
    """x >> by."""
    return x if by == 0 else tile.apply(Fn.SHR, x, by)


def bit(x: Node, number: Node | int) -> Node:
    """Whether a bit is set, 0 or 1."""
    return tile.apply(Fn.AND, shifted(x, number), 1)


def end(x: Node, level: Node) -> Node:
    """The end of the block that chunk x reads at a level."""
    return tile.apply(Fn.SHL, shifted(x, level), level)


def when(condition: Node, values: list[Node], make: Callable[..., Sequence[Node]]) -> list[Node]:
    """``make(zero, *values)`` where the number is 1, the values as they are where it is 0.

    What should only be worked out under the condition must depend on ``zero``.
    """
    return tile.loop(0, condition, 1, values, make)


def place(chunk: Chunk, block: Node) -> tuple[Node, Node, Node]:
    """Of a block's state."""
    return chunk.batch, chunk.head, block


def edges(tensor: Tensor, index: Sequence[Node], first: int = 3) -> dict[int, tile.Value]:
    """Bounds of the last dimensions of a tensor where their tiles reach past them."""
    sizes = {first + n: int(tensor.shape[first + n]) for n in range(len(index))}
    return {dim: size for (dim, size), x in zip(sizes.items(), index, strict=True) if size % x.axes[0].size}


def tile_number(own: Chunked, tiles: int) -> tuple[Node, Node]:
    """The chunk or block and the tile of columns of the grid's first dimension."""
    first = tile.program_id(0)
    return tile.apply(Fn.TRUNCDIV, first, tiles), tile.apply(Fn.TRUNCMOD, first, tiles)


def column_of(number: Node, axis: Axis) -> Node:
    """Indices of a tile's columns."""
    return add(mul(number, axis.size), tile.iota(axis))
