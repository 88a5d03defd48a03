"""What a kernel costs, as formulas that a reader can check: arithmetic and the fewest bytes.

Formulas are over B, TQ, TK, q_offset, the lengths a spec names, and the spec's own H, HKV, D, DV; `Cost.sizes` has the
latter. They count useful work: visible pairs, each tensor moved once. What a schedule adds (half-filled tiles, the same
keys read again) is counted on its tile programs, see ``sparsec.tile.work``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce

from sparsec.plan.plan import ITEM_BYTES
from sparsec.plan.reach import keys_seen
from sparsec.plan.specs import (
    BlockList,
    Combine,
    GatheredAttention,
    Piece,
    Selector,
    Spec,
    Summarise,
    TiledAttention,
)
from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.functions import minimum

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


def cost(spec: Spec) -> Cost:
    """The cost of a kernel as formulas."""
    return _COSTS[type(spec)](spec)


def _item(dtype: str) -> int:
    return ITEM_BYTES[dtype]


def _total(parts: list[Expr]) -> Expr:
    return reduce(lambda a, b: a + b, parts, ZERO)


def _tiled(spec: TiledAttention) -> Cost:
    item, out = _item(spec.dtype), _item(spec.out_dtype or spec.dtype)
    pairs = _total([B * H * keys_seen(p.where, var(p.length)) for p in spec.pieces])
    held = _total([_held(p, item) for p in spec.pieces])
    lse = 4 * B * TQ * H if spec.lse else ZERO
    sizes = {"H": spec.heads, "HKV": spec.kv_heads, "D": spec.head_dim, "DV": spec.value_dim}
    return Cost(2 * pairs * (D + DV), item * B * TQ * H * D + held + out * B * TQ * H * DV + lse, pairs, sizes)


def _held(piece: Piece, item: int) -> Expr:
    """Bytes of a piece's keys and values; a block list's few integers are left out."""
    rows = (B if piece.batched else constant(1)) * var(piece.length)
    return item * rows * HKV * (D + DV)


def _gathered(spec: GatheredAttention) -> Cost:
    item, out = _item(spec.dtype), _item(spec.out_dtype or spec.dtype)
    pairs = B * H * TQ * minimum(spec.slots * spec.chunk, TK)
    scopes = {"kv_head": HKV, "head": H, "token": constant(1)}[spec.scope]
    lists = B * TQ * scopes * spec.slots * (8 if spec.weights else 4)
    moved = item * B * (TQ * H * D + TK * HKV * (D + DV)) + out * B * TQ * H * DV
    sizes = {"H": spec.heads, "HKV": spec.kv_heads, "D": spec.head_dim, "DV": spec.value_dim}
    return Cost(2 * pairs * (D + DV), moved + lists, pairs, sizes)


def _selector(spec: Selector) -> Cost:
    from sparsec.scalar.walk import substitute

    item, heads = _item(spec.dtype), H
    if spec.group in ("sum", "mean") and not spec.softmax:
        heads = HKV  # scoring is linear: one summed query does the work of the group
    keys, blocks = var(spec.key_length), var(spec.block_length)
    over = spec.eligible if spec.pool is None else spec.visible
    where = substitute(over, {"c": var("j")}) if over is not None else None
    pairs = B * heads * keys_seen(where, keys if spec.pool else blocks)
    lists = B * TQ * (HKV if spec.group else H) * spec.slots * (8 if spec.weights else 4)
    sizes = {"H": spec.heads, "HKV": spec.kv_heads, "D": spec.dim}
    return Cost(2 * pairs * D, item * B * D * (TQ * H + keys * HKV) + lists, pairs, sizes)


def _summarise(spec: Summarise) -> Cost:
    windows = var(spec.length)
    moved = B * H * D * (TK * _item(spec.dtype) + windows * _item(spec.out_dtype))
    return Cost(B * windows * spec.size * H * D, moved, sizes={"H": spec.heads, "D": spec.dim})


def _combine(spec: Combine) -> Cost:
    count, rows = len(spec.branches), B * TQ * H
    moved = rows * DV * (count * _item(spec.branch_dtype) + _item(spec.dtype))
    extra = rows * (len(spec.gates) * _item(spec.dtype) + 4 * len(spec.lses) + (4 if spec.lse else 0))
    return Cost(2 * count * rows * DV, moved + extra, sizes={"H": spec.heads, "DV": spec.value_dim})


def _block_list(spec: BlockList) -> Cost:
    entries = (B if spec.per_batch else constant(1)) * H
    length = var(spec.length)
    tiles = ((TQ + (spec.block_q - 1)) // spec.block_q) * ((length + (spec.block_k - 1)) // spec.block_k)
    return Cost(entries * TQ * length, 4 * entries * tiles, sizes={"H": spec.heads})


_COSTS: dict[type, Callable[..., Cost]] = {
    TiledAttention: _tiled,
    GatheredAttention: _gathered,
    Selector: _selector,
    Summarise: _summarise,
    Combine: _combine,
    BlockList: _block_list,
}
