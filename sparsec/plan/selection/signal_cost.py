"""What the kernels that train a selector cost, as formulas over the same names as ``sparsec.plan.cost``."""

from __future__ import annotations

from collections.abc import Callable

from sparsec.plan.cost_terms import DV, HKV, TK, TQ, ZERO, B, Cost, D, H, item, sizes
from sparsec.plan.reach import keys_seen
from sparsec.plan.selection.signal_specs import DenseGradKeys, Divergence, IndexGradKeys, IndexGradQ, ListSum
from sparsec.plan.specs import Selector
from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.functions import minimum


def _list_sum(spec: ListSum) -> Cost:
    """A dot a pair; for slopes dp too, and both once more for their sums."""
    f = spec.forward
    pairs = B * H * TQ * minimum(f.slots * f.chunk, TK)
    scopes = {"kv_head": HKV, "head": H, "token": constant(1)}[f.scope]
    moved = item(f.dtype) * B * (TQ * H * D + TK * HKV * D) + 4 * B * TQ * (H + scopes * f.slots * (1 + spec.columns))
    if spec.kind == "mass":
        return Cost(2 * pairs * D, moved, pairs, sizes(f))
    values = B * DV * (TK * HKV * item(f.dtype) + TQ * H * item(spec.grad_dtype))
    return Cost(4 * pairs * (D + DV), moved + values, pairs, sizes(f))


def _walked(index: Selector, columns: int) -> tuple[Expr, Expr, dict[str, int]]:
    """(columns of all lists, bytes of queries, keys and lists, the numbers behind H, HKV and D)."""
    lists = constant(1) if index.head_weights is not None else HKV if index.group else H
    entries = B * TQ * lists * index.slots
    held = B * D * (TQ * H * item(index.dtype) + var(index.key_length) * HKV * item(index.key_dtype or index.dtype))
    known = {"H": index.heads, "HKV": index.kv_heads, "D": index.dim}
    return entries * columns, held + 4 * entries, known


def _rows(index: Selector) -> Expr:
    """Products per column."""
    return H if index.head_weights is not None else H / HKV if index.group else constant(1)


def _dense(loss: Divergence, walks: int) -> Cost:
    """Attention and scores of all pairs, so many times."""
    f, index = loss.dense, loss.index
    assert f is not None
    known = {"H": f.heads, "HKV": f.kv_heads, "D": f.head_dim, "DV": f.value_dim}
    rows = f.heads * f.head_dim + index.heads * index.dim
    moved = item(f.dtype) * B * (TQ * rows + TK * (f.kv_heads * f.head_dim + index.kv_heads * index.dim))
    pairs = B * keys_seen(f.where, TK)
    return Cost(2 * walks * pairs * rows, moved, pairs * f.heads, known)


def _divergence(spec: Divergence) -> Cost:
    """The scores, twice; read twice where they are kept."""
    if spec.dense is not None:
        return _dense(spec, 2)
    columns, moved, known = _walked(spec.index, spec.columns)
    if spec.scores is not None:
        return Cost(ZERO, 16 * columns, sizes=known)
    return Cost(4 * columns * _rows(spec.index) * D, moved + 4 * columns, sizes=known)


def _grad_q(spec: IndexGradQ) -> Cost:
    if spec.loss is not None and spec.loss.dense is not None:
        return _dense(spec.loss, 2)
    columns, moved, known = _walked(spec.index, spec.columns)
    if spec.loss is not None and spec.loss.scores is not None and spec.grad_q is None:
        return Cost(ZERO, 12 * columns, sizes=known)
    written = B * TQ * H * D * item(spec.out_dtype) if spec.grad_q else ZERO
    return Cost(4 * columns * _rows(spec.index) * D, moved + written + 8 * columns, sizes=known)


def _grad_keys(spec: IndexGradKeys) -> Cost:
    columns, moved, known = _walked(spec.index, spec.columns)
    written = B * var(spec.index.key_length) * HKV * D * item(spec.out_dtype)
    return Cost(4 * columns * _rows(spec.index) * D, moved + written + 4 * columns, sizes=known)


INDEX_COSTS: dict[type, Callable[..., Cost]] = {
    ListSum: _list_sum,
    Divergence: _divergence,
    IndexGradQ: _grad_q,
    IndexGradKeys: _grad_keys,
    DenseGradKeys: lambda spec: _dense(spec.loss, 2),
}
