"""What the cost formulas are written in: names, bytes, visible pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce

from sparsec.plan.plan import ITEM_BYTES
from sparsec.plan.reach import keys_seen
from sparsec.plan.specs import GatheredAttention, Piece, TiledAttention
from sparsec.scalar.expr import Expr, constant, var

B, TQ, TK, H, HKV, D, DV = (var(name) for name in ("B", "TQ", "TK", "H", "HKV", "D", "DV"))
ZERO = constant(0)


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one kernel.

    Attributes:
        flops: floating-point operations of dots (two per product) and of what else dominates.
        bytes: every tensor read or written once.
        pairs: (query head, key) pairs whose score is needed; 0 where there are none.
        sizes: the numbers behind H, HKV, D and DV in this kernel.
    """

    flops: Expr
    bytes: Expr
    pairs: Expr = ZERO
    sizes: Mapping[str, int] = field(default_factory=dict)

    def at(self, formula: Expr, params: Mapping[str, int]) -> int:
        """A formula's value under the kernel's launch parameters."""
        from sparsec.scalar.evaluate import evaluate

        return int(evaluate(formula, {**params, **self.sizes}))


def item(dtype: str) -> int:
    """Bytes of one element."""
    return ITEM_BYTES[dtype]


def total(parts: list[Expr]) -> Expr:
    """The sum of formulas."""
    return reduce(lambda a, b: a + b, parts, ZERO)


def tiled_pairs(piece: Piece) -> Expr:
    """The (head, query, key) triples that a piece's mask shows."""
    return B * H * keys_seen(piece.where, var(piece.length))


def held(piece: Piece, item: int) -> Expr:
    """Bytes of a piece's keys and values; a block list's few integers are left out."""
    rows = (B if piece.batched else constant(1)) * var(piece.length)
    return item * rows * HKV * (D + DV)


def sizes(spec: TiledAttention | GatheredAttention) -> dict[str, int]:
    """The numbers behind H, HKV, D and DV."""
    return {"H": spec.heads, "HKV": spec.kv_heads, "D": spec.head_dim, "DV": spec.value_dim}
