"""Running sums: a kernel where something reads one."""

from __future__ import annotations

from sparsec.ir.node import Node
from sparsec.plan.honours import honours
from sparsec.plan.maps.prefix_specs import Prefix
from sparsec.plan.planner import Planner


def prefix(planner: Planner, node: Node, name: str | None = None) -> str:
    """The buffer of a running sum, planned on first use; by default it is called as the node."""
    if (node, "tensor") in planner.places:
        return planner.places[node, "tensor"]
    honours(planner, node, "fn")
    x, (b, length, heads) = planner.input(node.src[0]), node.shape
    dims = {"N": length, "TQ": length, "TK": planner.token_length}
    fn = planner.close(node.expr("fn"), dims)
    assert fn is not None
    out = planner.fresh(name or planner.name(node), (b, length, heads), "float32")
    planner.places[node, "tensor"] = out
    spec = Prefix(f"prefix_{out}", x, out, planner.sizes.value(heads), "N", planner.buffers[x].dtype, fn)
    planner.specs[node] = spec
    planner.add(spec, [x], [out], [node], dims)
    return out
