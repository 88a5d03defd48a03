"""What mixtures cost: every row moved once, a few operations per element and candidate."""

from __future__ import annotations

from collections.abc import Callable

from sparsec.plan.cost_terms import HKV, B, Cost, D, H, item
from sparsec.plan.maps.row_specs import RowLse
from sparsec.plan.states.mixture_specs import Mixture, MixtureGrad, StateMixture, StateMixtureGrad
from sparsec.scalar.expr import Expr, var


def _rows(spec: Mixture, heads: Expr) -> Expr:
    return B * var(spec.length) * heads


def _sizes(spec: Mixture) -> dict[str, int]:
    return {"H": spec.heads, "HKV": spec.key_heads, "D": spec.dim}


def _mixture(spec: Mixture) -> Cost:
    count, few = len(spec.z), [x for x in (spec.bias, spec.gain) if x is not None]
    moved = _rows(spec, H) * (D * item(spec.dtype) + count * (4 + sum(item(dtype) for _, dtype in few)))
    flops = 2 * count * D * (_rows(spec, H) + 2 * _rows(spec, HKV))
    return Cost(flops, moved + 4 * count * D * _rows(spec, HKV), sizes=_sizes(spec))


def _mixture_grad(spec: MixtureGrad) -> Cost:
    f, own = spec.forward, _mixture(spec.forward)
    wide = sum(item(dtype) for _, dtype in spec.terms) + (item(spec.grad_q[1]) if spec.grad_q is not None else 0)
    made = sum(item(z[1]) for z in spec.grad_z if z is not None)
    few = len(f.z) * sum(item(x[1]) for x in (spec.grad_bias, spec.grad_gain) if x is not None)
    moved = _rows(f, H) * (D * wide + few) + _rows(f, HKV) * D * made
    return Cost(4 * own.flops, own.bytes + moved, sizes=_sizes(f))


def _row_lse(spec: RowLse) -> Cost:
    rows = B * var(spec.length) * H
    return Cost(3 * rows * D, rows * (D * item(spec.dtype) + 4), sizes={"H": spec.heads, "D": spec.dim})


def _state_mixture(spec: StateMixture) -> Cost:
    """Queries are read once, keys once per candidate."""
    m, count = spec.mixture, len(spec.masses)
    keys = sum(item(scan.writes.v.dtype) for scan in spec.masses)
    moved = _rows(m, H) * (D * item(m.dtype) + 4 * count) + _rows(m, HKV) * (D * keys + 8 * count)
    return Cost(2 * count * D * (_rows(m, H) + 3 * _rows(m, HKV)), moved, sizes=_sizes(m))


def _state_mixture_grad(spec: StateMixtureGrad) -> Cost:
    own, m, back = _state_mixture(spec.forward), spec.forward.mixture, spec.mixture
    wide = sum(item(dtype) for _, dtype in back.terms) + (item(back.grad_q[1]) if back.grad_q is not None else 0)
    made = sum(item(scan.grad_v.dtype) for scan in spec.masses if scan is not None and scan.grad_v is not None)
    return Cost(4 * own.flops, own.bytes + _rows(m, H) * D * wide + _rows(m, HKV) * D * made, sizes=_sizes(m))


MIXTURE_COSTS: dict[type, Callable[..., Cost]] = {
    Mixture: _mixture,
    MixtureGrad: _mixture_grad,
    StateMixture: _state_mixture,
    StateMixtureGrad: _state_mixture_grad,
    RowLse: _row_lse,
}
