"""What backward kernels cost, as formulas over the same names as ``sparsec.plan.cost``."""

from __future__ import annotations

from collections.abc import Callable

from sparsec.plan.attention.capture_specs import GatheredGradCapture
from sparsec.plan.attention.sink_specs import ChunkSinkGrad
from sparsec.plan.cost_terms import DV, HKV, TK, TQ, ZERO, B, Cost, D, H, held, item, sizes, tiled_pairs, total
from sparsec.plan.grad_specs import (
    CombineGrad,
    GatheredGradKV,
    GatheredGradQ,
    RowDot,
    SelectorGradKeys,
    SelectorGradQ,
    SummariseGrad,
    TiledGradCapture,
    TiledGradKV,
    TiledGradQ,
    Total,
)
from sparsec.plan.maps.prefix_specs import PrefixGrad
from sparsec.plan.reach import keys_seen
from sparsec.plan.selection.pooled_specs import PooledGrad
from sparsec.plan.specs import GatheredAttention, Selector, TiledAttention
from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.functions import minimum
from sparsec.scalar.walk import substitute


def _row_dot(spec: RowDot) -> Cost:
    rows = B * TQ * H
    moved = rows * DV * (item(spec.out_dtype) + item(spec.grad_dtype)) + 4 * rows * (2 if spec.lse_grad else 1)
    return Cost(2 * rows * DV, moved, sizes={"H": spec.heads, "DV": spec.value_dim})


def _read(forward: TiledAttention, grad_dtype: str) -> Expr:
    """Bytes that a backward kernel of tiled attention reads: q, keys, values, grad, lse and delta."""
    queries = B * TQ * H * (D * item(forward.dtype) + DV * item(grad_dtype) + 8)
    return queries + total([held(p, item(forward.dtype)) for p in forward.pieces])


def _tiled_q(spec: TiledGradQ) -> Cost:
    """Three dots a pair: scores, dp, dq."""
    f = spec.forward
    pairs = total([tiled_pairs(p) for p in f.pieces])
    moved = _read(f, spec.grad_dtype) + B * TQ * H * D * item(spec.out_dtype)
    if spec.dots:
        moved = moved + B * TQ * H * DV * item(f.out_dtype or f.dtype)
    return Cost(2 * pairs * (2 * D + DV), moved, pairs, sizes(f))


def _tiled_kv(spec: TiledGradKV) -> Cost:
    """Four dots a pair: scores, dp, dk, dv."""
    f = spec.forward
    piece = f.pieces[spec.piece]
    pairs, out = tiled_pairs(piece), item(spec.out_dtype)
    per_pair = D + DV + (D if spec.grad_k else ZERO) + (DV if spec.grad_v else ZERO)
    queries = B * TQ * H * (D * item(f.dtype) + DV * item(spec.grad_dtype) + 8)
    return Cost(2 * pairs * per_pair, queries + held(piece, item(f.dtype)) + held(piece, out), pairs, sizes(f))


def _tiled_capture(spec: TiledGradCapture) -> Cost:
    f = spec.forward
    pairs = total([tiled_pairs(p) for p in f.pieces])
    return Cost(2 * pairs * (D + DV), _read(f, spec.grad_dtype) + 4 * _elements(spec), pairs, sizes(f))


def _elements(spec: TiledGradCapture | GatheredGradCapture) -> Expr:
    """Of the captured tensor."""
    found = constant(1)
    for extent in spec.shape:
        found = found * (var(extent) if isinstance(extent, str) else constant(extent))
    return found


def _lists(f: GatheredAttention) -> tuple[Expr, Expr]:
    """(pairs, entries of the lists) of gathered attention."""
    scopes = {"kv_head": HKV, "head": H, "token": constant(1)}[f.scope]
    return B * H * TQ * minimum(f.slots * f.chunk, TK), B * TQ * scopes * f.slots


def _gathered_q(spec: GatheredGradQ) -> Cost:
    f = spec.forward
    pairs, entries = _lists(f)
    queries = B * TQ * H * (D * (item(f.dtype) + item(spec.out_dtype)) + DV * item(spec.grad_dtype) + 8)
    moved = queries + B * TK * HKV * (D + DV) * item(f.dtype)
    if spec.dots:
        moved = moved + B * TQ * H * DV * item(f.out_dtype or f.dtype)
    moved = moved + 4 * len(spec.terms) * B * TQ * H * D
    return Cost(2 * pairs * (2 * D + DV), moved + entries * (12 if spec.grad_weights else 4), pairs, sizes(f))


def _chunk_sinks(spec: ChunkSinkGrad) -> Cost:
    f = spec.forward
    pairs, entries = _lists(f)
    queries = B * TQ * H * (D * item(f.dtype) + DV * item(spec.grad_dtype) + 4)
    moved = queries + B * TK * HKV * (D + DV) * item(f.dtype) + 8 * entries
    return Cost(2 * pairs * (D + DV), moved, pairs, sizes(f))


def _gathered_capture(spec: GatheredGradCapture) -> Cost:
    f = spec.forward
    pairs, entries = _lists(f)
    queries = B * TQ * H * (D * item(f.dtype) + DV * item(spec.grad_dtype) + 8)
    moved = queries + B * TK * HKV * (D + DV) * item(f.dtype) + 4 * entries
    return Cost(2 * pairs * (D + DV), moved + 4 * _elements(spec), pairs, sizes(f))


def _gathered_kv(spec: GatheredGradKV) -> Cost:
    f = spec.forward
    pairs, entries = _lists(f)
    queries = B * TQ * H * (D * item(f.dtype) + DV * item(spec.grad_dtype) + 8)
    moved = queries + B * TK * HKV * (D + DV) * (item(f.dtype) + item(spec.out_dtype))
    return Cost(4 * pairs * (D + DV), moved + 8 * entries, pairs, sizes(f))


def _summarise(spec: SummariseGrad) -> Cost:
    f = spec.forward
    moved = B * H * D * (TK * item(spec.out_dtype) + var(f.length) * item(spec.grad_dtype))
    if f.fn == "max":  # tokens and maxima twice, and shares, written and read
        moved = moved + 2 * B * H * D * (TK * item(f.dtype) + var(f.length) * (item(f.out_dtype) + 4))
    return Cost(2 * B * TK * H * D * -(-f.size // f.stride), moved, sizes={"H": f.heads, "D": f.dim})


def _prefix(spec: PrefixGrad) -> Cost:
    f = spec.forward
    elements = B * var(f.length) * H
    return Cost(2 * elements, elements * (4 + item(f.dtype) + item(spec.out_dtype)), sizes={"H": f.heads})


def _selector_sizes(f: Selector) -> tuple[Expr, dict[str, int]]:
    """(entries of the lists, the numbers behind H, HKV and D) of a selector."""
    return B * TQ * (HKV if f.group else H) * f.slots, {"H": f.heads, "HKV": f.kv_heads, "D": f.dim}


def _selector_q(spec: SelectorGradQ) -> Cost:
    f = spec.forward
    entries, known = _selector_sizes(f)
    keys = B * var(f.key_length) * HKV * D * item(f.key_dtype or f.dtype)
    moved = B * TQ * H * D * (item(f.dtype) + item(spec.out_dtype)) + keys + 16 * entries
    return Cost(4 * entries * D, moved, sizes=known)


def _selector_keys(spec: SelectorGradKeys) -> Cost:
    f = spec.forward
    entries, known = _selector_sizes(f)
    keys = B * var(f.key_length) * HKV * D * item(spec.out_dtype)
    return Cost(2 * entries * D, B * TQ * H * D * item(f.dtype) + keys + 8 * entries, sizes=known)


def _pooled(spec: PooledGrad) -> Cost:
    f = spec.forward
    entries, known = _selector_sizes(f)
    seen = f.eligible if f.weights == "softmax_all" else f.visible
    where = substitute(seen, {"c": var("j")}) if seen is not None else None
    pairs = B * H * keys_seen(where, var(f.key_length))
    heads = f.heads // f.kv_heads if spec.together else 1
    rows = 2 * (spec.grad_q is not None) * (1 + heads * (spec.together or spec.normalised))
    walks = 4 * heads * spec.normalised + rows + (2 + 2 * heads) * (spec.grad_keys is not None)
    keys = B * var(f.key_length) * HKV * D * (item(f.key_dtype or f.dtype) + item(spec.keys_dtype))
    moved = B * TQ * H * D * (item(f.dtype) + item(spec.q_dtype)) + keys + 8 * entries
    return Cost(walks * pairs * D, moved, pairs, known)


def _combine(spec: CombineGrad) -> Cost:
    f, rows = spec.forward, B * TQ * H
    written = sum(item(spec.branch_grad_dtype) for b in spec.branch_grads if b)
    moved = rows * DV * (sum(item(dtype) for _, dtype in f.typed) + item(spec.grad_dtype) + written)
    few = 2 * item(f.dtype) * len(f.gates) + 8 * len(f.lses) + 4 * sum(d is not None for d in spec.deltas)
    return Cost(4 * len(f.branches) * rows * DV, moved + rows * few, sizes={"H": f.heads, "DV": f.value_dim})


def _total(spec: Total) -> Cost:
    elements = (B if spec.batched else constant(1)) * var(spec.length) * H * D
    moved = elements * (sum(item(d) for d in spec.term_dtypes) + item(spec.out_dtype))
    return Cost(len(spec.terms) * elements, moved, sizes={"H": spec.heads, "D": spec.dim})


GRAD_COSTS: dict[type, Callable[..., Cost]] = {
    RowDot: _row_dot,
    TiledGradQ: _tiled_q,
    TiledGradKV: _tiled_kv,
    TiledGradCapture: _tiled_capture,
    GatheredGradQ: _gathered_q,
    GatheredGradKV: _gathered_kv,
    SummariseGrad: _summarise,
    PrefixGrad: _prefix,
    SelectorGradQ: _selector_q,
    SelectorGradKeys: _selector_keys,
    PooledGrad: _pooled,
    ChunkSinkGrad: _chunk_sinks,
    GatheredGradCapture: _gathered_capture,
    CombineGrad: _combine,
    Total: _total,
}
