"""What maps and their adjoints cost: every source and result moved once, a few operations per element."""

from __future__ import annotations

from collections.abc import Callable

from sparsec.plan.cost_terms import Cost, item, total
from sparsec.plan.maps.map_specs import Map, MapGrad, Shape, needed, symbol
from sparsec.scalar.derivative import derivative
from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.fn import Fn
from sparsec.scalar.walk import postorder

ROW = {"none": 0, "l2norm": 3, "softmax": 5, "chosen": 4}
"""Operations per element of a row function."""


def _map(spec: Map) -> Cost:
    moved = [_size(s.shape) * item(s.dtype) for s in dict.fromkeys(spec.sources)]
    rows = total([_size(s.shape) * ROW[s.row] for s in spec.sources])
    written = _size(spec.shape)
    return Cost(written * _operations(spec.fn) + rows, total(moved) + written * item(spec.dtype))


def _map_grad(spec: MapGrad) -> Cost:
    forward = spec.forward
    asked = [k for k, g in enumerate(spec.grads) if g is not None]
    read = [_size(s.shape) * item(s.dtype) for s in needed(spec)] + [_size(forward.shape) * item(spec.grad_dtype)]
    written = [_size(forward.sources[k].shape) * item(g[1]) for k, g in enumerate(spec.grads) if g is not None]
    slopes = sum(_operations(derivative(forward.fn, symbol(k))) + 1 for k in asked)
    rows = total([_size(forward.sources[k].shape) * (2 * ROW[forward.sources[k].row]) for k in asked])
    return Cost(_size(forward.shape) * slopes + rows, total([*read, *written]))


def _size(shape: Shape) -> Expr:
    found: Expr = constant(1)
    for extent in shape:
        found = found * (var(extent) if isinstance(extent, str) else constant(extent))
    return found


def _operations(fn: Expr) -> int:
    return sum(isinstance(part.head, Fn) for part in postorder(fn))


MAP_COSTS: dict[type, Callable[..., Cost]] = {Map: _map, MapGrad: _map_grad}
