"""Memory of a decode step of LoLA: rows that are held, and which of them is what, as the device's lengths say.

Rows lie where they were written; a table names them. Its first ``keep`` entries are the cache, by token, the others a
ring of the window and the running chunk. A take-in leaves table and state in their other version, so that no launch
reads what it writes.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.scalars import add, least, most, mul, sub
from sparsec.lower.scan.cell import padded
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Tensor
from sparsec.tile.schedule import Schedule

VERSIONS = 2


@dataclass(frozen=True, slots=True)
class Held:
    """Sizes and dtypes of a step: k ``[B,N,HKV,D]``, v ``[B,N,HKV,DV]``, features ``[B,N,HKV,F]``, q, fq of ``heads``.

    Attributes:
        keep, size, lag: pairs of the cache, tokens of a chunk, and chunks of the window.
        scale: of softmax logits.
        dtypes: by part: q, k, v, fq, fk; outputs are q's.
    """

    heads: int
    groups: int
    dim: int
    cols: int
    features: int
    keep: int
    size: int
    lag: int
    scale: float
    dtypes: tuple[tuple[str, str], ...]

    @property
    def ring(self) -> int:
        """Tokens of the ring."""
        return (self.lag + 1) * self.size

    @property
    def rows(self) -> int:
        """Rows of memory."""
        return self.keep + self.ring

    def width(self, part: str) -> int:
        """Elements of a row."""
        return {"q": self.dim, "k": self.dim, "v": self.cols, "fq": self.features, "fk": self.features}[part]

    def tokens(self, part: str) -> Tensor:
        """New rows of a part, or what they are answered: ``out``."""
        if part == "out":
            return Tensor("out", dict(self.dtypes)["q"], ("B", "TQ", self.heads, self.cols))
        heads = self.heads if part in ("q", "fq") else self.groups
        return Tensor(f"new_{part}", dict(self.dtypes)[part], ("B", "TQ", heads, self.width(part)))

    def memory(self, part: str, name: str = "held") -> Tensor:
        """Rows that are held."""
        return Tensor(f"{name}_{part}", dict(self.dtypes)[part], ("B", self.rows, self.groups, self.width(part)))

    def table(self, name: str = "table") -> Tensor:
        """By entry how far its row lies from it, so that all begin as zeros."""
        return Tensor(name, "int32", ("B", VERSIONS, self.groups, self.rows))

    def state(self, name: str = "m") -> Tensor:
        """M by version."""
        return Tensor(name, "float32", ("B", VERSIONS, self.groups, self.features, self.cols))

    def mass(self, name: str = "z") -> Tensor:
        """z by version."""
        return Tensor(name, "float32", ("B", VERSIONS, self.groups, self.features))

    def taken(self, length: Node) -> Node:
        """The chunks that joined the cache before the tokens of a chunk are read."""
        return most(sub(tile.apply(Fn.TRUNCDIV, length, self.size), self.lag), 0)

    def cached(self, taken: Node) -> Node:
        """The pairs that the cache holds by then."""
        return least(mul(least(taken, self.keep), self.size), self.keep)


def version(taken: Node) -> Node:
    """Where table and state lie after so many take-ins."""
    return tile.apply(Fn.TRUNCMOD, taken, VERSIONS)


def row_of(held: Held, at: tuple[Node, Node, Node], entry: Node, there: Node) -> Node:
    """The rows of entries of (batch, version, head) where they are there, else the number of rows."""
    inside = tile.apply(Fn.WHERE, there, entry, held.rows)
    row = add(inside, tile.load(held.table(), *at, inside, bounds={3: held.rows}))
    return tile.apply(Fn.WHERE, there, row, held.rows)


def columns(builder: tile.Builder, name: str, size: int, schedule: Schedule, block: int = 0) -> Axis:
    """An axis over columns, or blocks of them; of a power of two where the target needs it."""
    whole = max(padded(size), 16) if schedule.split_dims else size
    return builder.axis(name, min(whole, block) if block and whole % block == 0 else whole)


def within(width: int, axis: Axis, dim: int = 3) -> dict[int, tile.Value]:
    """The bound of columns that an axis may pass."""
    return {dim: width} if width % axis.size else {}
