"""The adjoint of a map: the gradients of all its sources that are asked for, in one kernel."""

from __future__ import annotations

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.plan.map import mapped
from sparsec.plan.map_specs import Map, MapGrad, needed
from sparsec.plan.planner import Planner
from sparsec.plan.row_dot import Source
from sparsec.scalar.walk import variables

ROUNDED = (Op.ATTEND, Op.MERGE)
"""Ops whose adjoints read the gradient of their output in the dtype of the inputs."""


def map_gradient(planner: Planner, vjp: Node, source: Source) -> None:
    """Plan the kernel that computes all asked adjoints of one map; each gets its buffer."""
    node, cotangent = vjp.positional[:2]
    mapped(planner, node)
    forward, fn = planner.specs[node], node.expr("fn")
    assert isinstance(forward, Map) and fn is not None
    grad = source(cotangent, "float32")
    asked = {str(v["of"]): v for v in planner.vjps if v.src[0] is node and v.positional[1] is cotangent}
    read = [f"x{k}" for k in range(len(node.src)) if f"x{k}" in variables(fn)]
    outs = {of: planner.temporary(v, "tensor", v.shape, _dtype(planner, v)) for of, v in asked.items() if of in read}
    grads = tuple((outs[of], planner.buffers[outs[of]].dtype) if of in outs else None for of in read)
    name = f"grad_{'_'.join(outs.values())}"
    spec = MapGrad(name, forward, grad, planner.buffers[grad].dtype, grads)
    planner.follow(node, spec, [*(s.name for s in needed(spec)), grad], list(outs.values()), list(asked.values()))


def _dtype(planner: Planner, vjp: Node) -> str:
    """That of the source for a result; for what goes on, what its reader takes."""
    if vjp not in planner.inner:
        return planner.sizes.dtype_of(vjp)
    readers = [v for v in planner.vjps if v.positional[1] is vjp]
    return planner.sizes.dtype if any(v.src[0].op in ROUNDED for v in readers) else "float32"
