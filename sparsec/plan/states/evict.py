"""Which pairs a cache of fixed size gives up for a linear state, when, and what queries read of that state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparsec.ir import build
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.plan.planner import Planner
from sparsec.plan.states.evict_specs import Evict, LinearRead
from sparsec.scalar.walk import postorder

LINEAR = "log(maximum(score, 1e-30))"
"""The logit under which a softmax is linear attention: weights are the products of features."""


def evict(planner: Planner, node: Node, name: str | None = None) -> str:
    """The buffer of the chunks after which pairs are given up, planned on first use under a mask's name for it.

    A linear attention over what was given up is computed on the way, since the walk has the state at hand.
    """
    if (node, "tensor") in planner.places:
        return planner.places[node, "tensor"]
    k, v = (planner.input(source) for source in node.src)
    heads, dim, cols = (planner.sizes.value(size) for size in (*node.src[0].shape[2:], node.src[1].shape[3]))
    out = planner.fresh(name or planner.name(node), node.shape, "int32")
    planner.places[node, "tensor"] = out
    kinds = planner.buffers[k].dtype, planner.buffers[v].dtype
    attend = planner.linear.get(node)
    read = None if attend is None else _read(planner, attend, node)
    keep, size = node.integer("keep"), node.integer("size")
    spec = Evict(f"evict_{out}", k, v, out, heads, dim, cols, keep, size, *kinds, read=read)
    dims = {"N": node.shape[1], "TQ": node.shape[1], "TK": planner.token_length}
    planner.specs[node] = spec
    asked = [] if read is None else [read.q]
    made = [out] if read is None else [out, read.out, read.lse]
    covers = [node] if attend is None else [node, attend.positional[2], attend]
    planner.add(spec, [k, v, *asked], made, covers, dims)
    return out


def read_given_up(planner: Planner, attend: Node) -> None:
    """Plan a linear attention over what was given up, with what gives it up."""
    ((name, node),) = attend.positional[2].captures.items()
    evict(planner, node, name)


def _read(planner: Planner, attend: Node, node: Node) -> LinearRead:
    behind = lag(attend, node)
    assert behind is not None
    dtype = "float32" if attend in planner.exact | planner.merged else planner.sizes.dtype
    q = planner.input(attend.src[0])
    out = planner.temporary(attend, "o", attend.shape, dtype)
    lse = planner.temporary(attend, "lse", attend.shape[:3], "float32")
    return LinearRead(q, planner.buffers[q].dtype, out, dtype, lse, planner.sizes.value(attend.shape[2]), behind)


def linear_reads(nodes: Sequence[Node]) -> Mapping[Node, Node]:
    """By what gives pairs up, the linear attention over those; none where gradients need its scores."""
    if any(n.op is Op.VJP for n in nodes):
        return {}
    found: dict[Node, Node] = {}
    for attend in (n for n in nodes if n.op is Op.ATTEND):
        node = given_up(attend)
        if node is not None and lag(attend, node) is not None:
            found.setdefault(node, attend)
    return found


def given_up(attend: Node) -> Node | None:
    """What gives up the pairs that an attend may read linearly."""
    masks = [s for s in attend.positional[2:] if s.op is Op.MASK]
    captured = [source for mask in masks for source in mask.captures.values()]
    return captured[0] if len(attend.positional) == 3 and len(captured) == 1 and captured[0].op is Op.EVICT else None


def lag(attend: Node, node: Node) -> int | None:
    """After how many chunks what was given up is read; None where the attend is no such read."""
    q, memory, mask = attend.positional
    (name,) = mask.captures
    where = mask.expr("where")
    if memory.op is not Op.TOKENS or memory.src != node.src or q.shape[1] is not memory.shape[1] or where is None:
        return None
    size = node.integer("size")
    named = {abs(int(x.value)) for x in postorder(where) if x.head == "const" and isinstance(x.value, int)}
    for behind in {0} | named:  # a lag of nothing is not written
        seen = f"{name}[b, j, h * ({node.shape[2]}) // ({q.shape[2]})] < i // {size} - {behind}"
        shown = build.mask(memory, where=seen, **{name: node})
        if shown is mask and build.attend(q, memory, shown, scale=1.0, bias=LINEAR) is attend:
            return behind
    return None
