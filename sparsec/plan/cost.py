"""What a kernel costs, as formulas that a reader can check: arithmetic and the fewest bytes.

Formulas are over B, TQ, TK, q_offset, the lengths a spec names, and the spec's own H, HKV, D, DV; `Cost.sizes` has the
latter. They count useful work: visible pairs, each tensor moved once. What a schedule adds (half-filled tiles, the same
keys read again) is counted on its tile programs, see ``sparsec.tile.work``.
"""

from __future__ import annotations

from collections.abc import Callable

from sparsec.plan.cost_terms import DV, HKV, TK, TQ, ZERO, B, Cost, D, H, held, item, sizes, tiled_pairs, total
from sparsec.plan.grad_cost import GRAD_COSTS
from sparsec.plan.grad_specs import AnySpec
from sparsec.plan.maps.map_cost import MAP_COSTS
from sparsec.plan.maps.prefix_specs import Prefix
from sparsec.plan.reach import keys_seen
from sparsec.plan.selection.shared_specs import Members, SetSelector
from sparsec.plan.selection.signal_cost import INDEX_COSTS
from sparsec.plan.specs import (
    BlockList,
    Combine,
    GatheredAttention,
    Selector,
    Summarise,
    TiledAttention,
)
from sparsec.plan.states.evict_specs import Evict
from sparsec.plan.states.mixture_cost import MIXTURE_COSTS
from sparsec.plan.states.route_cost import ROUTE_COSTS
from sparsec.plan.states.scan_cost import SCAN_COSTS
from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.functions import minimum

__all__ = ["Cost", "cost"]


def cost(spec: AnySpec) -> Cost:
    """The cost of a kernel as formulas."""
    return _COSTS[type(spec)](spec)


def _tiled(spec: TiledAttention) -> Cost:
    size, out = item(spec.dtype), item(spec.out_dtype or spec.dtype)
    pairs = total([tiled_pairs(p) for p in spec.pieces])
    read = size * B * TQ * H * D + total([held(p, size) for p in spec.pieces])
    lse = 4 * B * TQ * H if spec.lse else ZERO
    return Cost(2 * pairs * (D + DV), read + out * B * TQ * H * DV + lse, pairs, sizes(spec))


def _gathered(spec: GatheredAttention) -> Cost:
    size, out = item(spec.dtype), item(spec.out_dtype or spec.dtype)
    pairs = B * H * TQ * minimum(spec.slots * spec.chunk, TK)
    scopes = {"kv_head": HKV, "head": H, "token": constant(1)}[spec.scope]
    lists = B * TQ * scopes * spec.slots * (8 if spec.weights else 4)
    moved = size * B * (TQ * H * D + TK * HKV * (D + DV)) + out * B * TQ * H * DV
    return Cost(2 * pairs * (D + DV), moved + lists, pairs, sizes(spec))


def _selector(spec: Selector) -> Cost:
    from sparsec.scalar.walk import substitute

    size, heads = item(spec.dtype), H
    if spec.group in ("sum", "mean") and not spec.softmax:
        heads = HKV  # scoring is linear: one summed query does the work of the group
    keys, blocks = var(spec.key_length), var(spec.block_length)
    over = spec.eligible if spec.pool is None else spec.visible
    where = substitute(over, {"c": var("j")}) if over is not None else None
    pairs = B * heads * keys_seen(where, keys if spec.pool else blocks)
    above: Expr = ZERO
    if spec.parents is not None and not spec.softmax and spec.weights != "softmax_all":
        own = spec.parents.slots * spec.parents.fanout
        pairs = minimum(pairs, B * heads * TQ * own)  # the children of what was chosen one level up
        above = 4 * B * TQ * spec.parents.heads * spec.parents.slots
    pairs = pairs // spec.query_block if spec.query_block > 1 else pairs
    shared = HKV if spec.group or spec.head_weights else H
    lists = B * TQ * shared * spec.slots * (8 if spec.weights else 4)
    known = {"H": spec.heads, "HKV": spec.kv_heads, "D": spec.dim}
    return Cost(2 * pairs * D, size * B * D * (TQ * H + keys * HKV) + lists + above, pairs, known)


def _summarise(spec: Summarise) -> Cost:
    windows = var(spec.length)
    moved = B * H * D * (TK * item(spec.dtype) + windows * item(spec.out_dtype))
    return Cost(B * windows * spec.size * H * D, moved, sizes={"H": spec.heads, "D": spec.dim})


def _combine(spec: Combine) -> Cost:
    count, rows = len(spec.branches), B * TQ * H
    moved = rows * DV * (sum(item(dtype) for _, dtype in spec.typed) + item(spec.dtype))
    gates = count if spec.fn == "weighted" else len(spec.gates)
    extra = rows * (gates * item(spec.dtype) + 4 * len(spec.lses) + (4 if spec.lse else 0))
    return Cost(2 * count * rows * DV, moved + extra, sizes={"H": spec.heads, "DV": spec.value_dim})


def _prefix(spec: Prefix) -> Cost:
    elements = B * var(spec.length) * H
    return Cost(2 * elements, elements * (item(spec.dtype) + 4), sizes={"H": spec.heads})


def _set_selector(spec: SetSelector) -> Cost:
    pairs = B * TQ * H * var(spec.key_length)
    moved = B * D * (TQ * H * item(spec.dtype) + var(spec.key_length) * HKV * item(spec.key_dtype))
    return Cost(2 * pairs * D, moved, pairs, {"H": spec.heads, "HKV": spec.kv_heads, "D": spec.dim})


def _members(spec: Members) -> Cost:
    units = B * var(spec.length)
    return Cost(units * spec.k, 4 * units)


def _evict(spec: Evict) -> Cost:
    """Of each chunk those that are held are scored once more."""
    tokens = B * var(spec.length) * HKV
    scored = tokens * (2 * (spec.size + spec.keep)) // spec.size
    moved = tokens * (D * item(spec.k_dtype) + DV * item(spec.v_dtype) + 4)
    flops, read = 4 * scored * D * DV, spec.read
    if read is not None:
        asked = B * var(spec.length) * read.heads
        flops, moved = (
            flops + 2 * asked * D * DV,
            moved + asked * (D * item(read.q_dtype) + DV * item(read.out_dtype) + 4),
        )
    return Cost(flops, moved, sizes={"HKV": spec.heads, "D": spec.dim, "DV": spec.cols})


def _block_list(spec: BlockList) -> Cost:
    if spec.given is not None:
        blocks = B * spec.heads * ((TQ + (spec.block_q - 1)) // spec.block_q)
        keys = (var(spec.length) + (spec.block_k - 1)) // spec.block_k
        return Cost(blocks * spec.slots * (keys if spec.transposed else 1), 8 * blocks * spec.slots)
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
    SetSelector: _set_selector,
    Members: _members,
    Evict: _evict,
    Prefix: _prefix,
    BlockList: _block_list,
    **SCAN_COSTS,
    **MIXTURE_COSTS,
    **ROUTE_COSTS,
    **GRAD_COSTS,
    **INDEX_COSTS,
    **MAP_COSTS,
}
