"""What scans of matrix states cost: the arithmetic of the recurrence, and every tensor moved once.

Chunked schedules do more arithmetic, on matrix units; what they do is counted on their tile programs.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from sparsec.plan.cost_terms import DV, HKV, ZERO, B, Cost, D, item
from sparsec.plan.states.fenwick_specs import Ladder, LadderGrad
from sparsec.plan.states.scan_specs import Operand, Scan, ScanGrad, StatesSum, Writes
from sparsec.scalar.expr import Expr, constant, var


def _sizes(spec: Scan) -> dict[str, int]:
    w = spec.writes
    return {"H": spec.reads[0].heads if spec.reads else w.heads, "HKV": w.heads, "D": w.rows, "DV": w.cols}


def _written(w: Writes) -> Expr:
    """Bytes of what tokens bring."""
    size = D * item(w.k.dtype) + DV * item(w.v.dtype)
    size = size + (constant(item(w.beta.dtype)) if w.beta is not None else ZERO)
    for operand in w.erase or ():
        size = size + D * item(operand.dtype)
    size = w.steps * size
    if w.decay is not None:
        size = size + item(w.decay.dtype) * {"key": D, "value": DV}.get(w.decay_kind, constant(1))
    return B * var(w.length) * HKV * size


def _passes(w: Writes) -> int:
    """How often a token goes over its states, two operations per element each."""
    return w.slots * (w.steps * (1 + (2 if w.rule == "delta" else 0)) + (w.decay is not None))


def _heads(spec: Scan) -> int:
    return spec.writes.slots * sum(read.heads for read in spec.reads)


def _scan(spec: Scan) -> Cost:
    w, tokens = spec.writes, B * var(spec.writes.length)
    states = 4 * B * w.parts * HKV * D * DV * ((w.initial is not None) + (spec.final is not None))
    asked = sum((tokens * r.heads * (D * item(r.q.dtype) + DV * item(r.out.dtype)) for r in spec.reads), ZERO)
    flops = 2 * tokens * D * DV * (HKV * _passes(w) + _heads(spec))
    return Cost(flops, _written(w) + asked + states, sizes=_sizes(spec))


def _scan_grad(spec: ScanGrad) -> Cost:
    own, w, tokens = spec.forward, spec.forward.writes, B * var(spec.forward.writes.length)
    states = (w.initial is not None) + (spec.grad_final is not None) + (spec.grad_initial is not None)
    read = sum((tokens * r.heads * D * item(r.q.dtype) for r in own.reads), ZERO)
    pairs = zip(spec.grads, own.reads, strict=True)
    read = read + sum((tokens * r.heads * DV * item(g.dtype) for g, r in pairs), ZERO)
    made = _made(spec)
    flops = 2 * tokens * D * DV * (3 * HKV * _passes(w) + 3 * _heads(own))
    return Cost(flops, _written(w) + read + tokens * made + 4 * B * w.parts * HKV * D * DV * states, sizes=_sizes(own))


def _made(spec: ScanGrad) -> Expr:
    """Bytes per token of the gradients."""
    w, pairs = spec.forward.writes, zip(spec.grad_q, spec.forward.reads, strict=True)
    key = {"key": (w.rows,), "value": (w.cols,)}.get(w.decay_kind, ())
    found: list[tuple[Operand | None, tuple[int, ...]]] = [(q, (r.heads, w.rows)) for q, r in pairs]
    each = w.steps * w.heads
    found += [(spec.grad_k, (each, w.rows)), (spec.grad_v, (each, w.cols)), (spec.grad_beta, (each,))]
    found += [(spec.grad_decay, (w.heads, *key)), *((erase, (each, w.rows)) for erase in spec.grad_erase)]
    return constant(sum(item(operand.dtype) * prod(shape) for operand, shape in found if operand is not None))


def _states_sum(spec: StatesSum) -> Cost:
    states, made = spec.parts * HKV * D * DV, B if spec.batched else 1
    sizes = {"HKV": spec.heads, "D": spec.rows, "DV": spec.cols}
    return Cost(len(spec.x) * B * states, 4 * (len(spec.x) * B + made) * states, sizes=sizes)


def _as_scan(spec: Ladder) -> Scan:
    """The states that all levels together are."""
    return Scan(spec.name, spec.writes, (spec.read,), spec.dtype)


def _ladder(spec: Ladder) -> Cost:
    """Every token reads half of all levels on average; the rest is that of one state."""
    own, tokens, levels = _scan(_as_scan(spec)), B * var(spec.writes.length), spec.levels
    more = tokens * HKV * D * DV * max(levels - 2, 0)
    return Cost(own.flops + more, own.bytes + 4 * levels * tokens * HKV, sizes=own.sizes)


def _ladder_grad(spec: LadderGrad) -> Cost:
    f, tokens, levels = spec.forward, B * var(spec.forward.writes.length), spec.forward.levels
    made = (spec.grad_q,), spec.grad_k, spec.grad_v, spec.grad_beta, spec.grad_decay
    own = _scan_grad(ScanGrad(spec.name, _as_scan(f), (spec.grad,), None, *made))
    more = 3 * tokens * HKV * D * DV * max(levels - 2, 0)
    gates = 4 * levels * tokens * HKV * (1 + (spec.grad_gate is not None))
    return Cost(own.flops + more, own.bytes + gates, sizes=own.sizes)


SCAN_COSTS: dict[type, Callable[..., Cost]] = {
    Scan: _scan,
    ScanGrad: _scan_grad,
    StatesSum: _states_sum,
    Ladder: _ladder,
    LadderGrad: _ladder_grad,
}
