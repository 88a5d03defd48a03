"""What rows of a tensor come to, squared lengths and log-sum-exps, and their gradients."""

from __future__ import annotations

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.plan.grad_specs import RowDot
from sparsec.plan.maps.map import plan_map
from sparsec.plan.maps.map_specs import Row, symbol
from sparsec.plan.maps.row_specs import RowLse
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


def row_lse(planner: Planner, node: Node) -> str:
    """The buffer of log Σ exp x, fp32, planned on first use."""
    if (node, "tensor") in planner.places:
        return planner.places[node, "tensor"]
    x, length = planner.input(node.src[0]), node.shape[1]
    heads, dim = (planner.sizes.value(extent) for extent in node.src[0].shape[2:])
    out = planner.temporary(node, "tensor", node.shape, "float32")
    spec = RowLse(f"row_lse_{out}", x, out, heads, dim, planner.buffers[x].dtype)
    planner.add(spec, [x], [out], [node], {"N": length, "TQ": length, "TK": planner.token_length})
    return out


def row_gradient(planner: Planner, vjp: Node, source: Source) -> None:
    """Plan the kernel of a gradient: that of the number times 2 x, or times the softmax of x."""
    node, cotangent = vjp.positional
    x, grad = planner.input(node.src[0]), source(cotangent, "float32")
    out = planner.temporary(vjp, "tensor", vjp.shape, planner.precision(vjp, planner.sizes.dtype_of(vjp)))
    square = node.op is Op.NORM2
    fn, row = (2.0 if square else 1.0) * symbol(0) * symbol(1), Row() if square else Row("softmax")
    plan_map(planner, vjp, out, [(x, node.src[0], row), (grad, node, Row())], fn, align="heads")
