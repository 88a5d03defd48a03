"""Squared lengths of rows, and their gradient."""

from __future__ import annotations

from sparsec.ir.node import Node
from sparsec.plan.grad_specs import RowDot
from sparsec.plan.map import plan_map
from sparsec.plan.map_specs import symbol
from sparsec.plan.planner import Planner
from sparsec.plan.row_dot import Source


def norm2(planner: Planner, node: Node) -> str:
    """The buffer of Σ x², fp32, planned on first use."""
    if (node, "tensor") in planner.places:
        return planner.places[node, "tensor"]
    x = planner.input(node.src[0])
    heads, dim = (planner.sizes.value(extent) for extent in node.src[0].shape[2:])
    out, dtype = planner.temporary(node, "tensor", node.shape, "float32"), planner.buffers[x].dtype
    spec = RowDot(f"norm2_{out}", x, x, out, heads, dim, dtype, dtype)
    planner.add(spec, [x], [out], [node], {"TQ": node.shape[1], "TK": planner.token_length})
    return out


def norm2_gradient(planner: Planner, vjp: Node, source: Source) -> None:
    """Plan the kernel of 2 x times the gradient of the squared length."""
    node, cotangent = vjp.positional
    x, grad = planner.input(node.src[0]), source(cotangent, "float32")
    out = planner.temporary(vjp, "tensor", vjp.shape, planner.precision(vjp, planner.sizes.dtype_of(vjp)))
    fn = 2.0 * symbol(0) * symbol(1)
    plan_map(planner, vjp, out, [(x, node.src[0], "none"), (grad, node, "none")], fn, align="heads")
