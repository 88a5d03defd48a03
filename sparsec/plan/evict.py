"""Which pairs a cache of fixed size gives up for a linear state, and when."""

from __future__ import annotations

from sparsec.ir.node import Node
from sparsec.plan.evict_specs import Evict
from sparsec.plan.planner import Planner


def evict(planner: Planner, node: Node, name: str | None = None) -> str:
    """The buffer of the chunks after which pairs are given up, planned on first use under a mask's name for it."""
    if (node, "tensor") in planner.places:
        return planner.places[node, "tensor"]
    k, v = (planner.input(source) for source in node.src)
    heads, dim, cols = (planner.sizes.value(size) for size in (*node.src[0].shape[2:], node.src[1].shape[3]))
    out = planner.fresh(name or planner.name(node), node.shape, "int32")
    planner.places[node, "tensor"] = out
    kinds = planner.buffers[k].dtype, planner.buffers[v].dtype
    spec = Evict(f"evict_{out}", k, v, out, heads, dim, cols, node.integer("keep"), node.integer("size"), *kinds)
    dims = {"N": node.shape[1], "TQ": node.shape[1], "TK": planner.token_length}
    planner.specs[node] = spec
    planner.add(spec, [k, v], [out], [node], dims)
    return out
