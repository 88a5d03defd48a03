"""The adjoint of a running sum."""

from __future__ import annotations

from sparsec.ir.node import Node
from sparsec.plan.maps.prefix import prefix
from sparsec.plan.maps.prefix_specs import Prefix, PrefixGrad
from sparsec.plan.planner import Planner
from sparsec.plan.row_dot import Source


def prefix_gradient(planner: Planner, vjp: Node, dtype: str, source: Source) -> None:
    """Plan the kernel of the gradient of what is summed."""
    node = vjp.src[0]
    prefix(planner, node)
    forward = planner.specs[node]
    assert isinstance(forward, Prefix)
    grad = source(vjp.positional[1], "float32")
    out_dtype = planner.precision(vjp, dtype)
    out = planner.temporary(vjp, "tensor", vjp.shape, out_dtype)
    spec = PrefixGrad(f"grad_{out}", forward, grad, out, out_dtype)
    planner.follow(node, spec, [forward.x, grad], [out], [vjp])
