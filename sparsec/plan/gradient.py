"""Gradients as buffers: sums, and adjoints dispatched to the class that computes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.rules_state import is_ladder
from sparsec.plan.adjoint import alike, branches, is_total, pull, shared, terms, through_lists
from sparsec.plan.attention.gathered_gradient import gathered_gradient
from sparsec.plan.attention.merge_gradient import gate_gradient, merge_gradient
from sparsec.plan.attention.tiled_gradient import tiled_gradient
from sparsec.plan.grad_specs import Total
from sparsec.plan.maps.map import plan_map
from sparsec.plan.maps.map_gradient import map_gradient
from sparsec.plan.maps.map_specs import Row, symbol
from sparsec.plan.maps.prefix_gradient import prefix_gradient
from sparsec.plan.maps.row_numbers import row_gradient
from sparsec.plan.planner import Planner
from sparsec.plan.row_dot import Source
from sparsec.plan.selection.select_gradient import score_gradient, summary_gradient
from sparsec.plan.selection.signal_gradient import list_gradient
from sparsec.plan.states.fenwick import ladder_gradient
from sparsec.plan.states.mass import mass_gradient
from sparsec.plan.states.mixture import mixture_gradient
from sparsec.plan.states.route_gradient import route_gradient
from sparsec.plan.states.scan_gradient import scan_gradient, states_sum
from sparsec.scalar.expr import Expr, var


def gradient(planner: Planner, node: Node, dtype: str) -> str:
    """The buffer of a gradient, or of a cotangent that the caller gives; planned on first use."""
    if node.op is Op.INPUT or (node.op is Op.MAP and not is_total(node)):
        return planner.input(node)
    if (node, "tensor") not in planner.places:
        groups = _groups(planner, node)
        if len(groups) == 1:
            _one(planner, groups[0], node, dtype)
        else:
            _total(planner, node, groups, dtype)
    if _rounds(planner, node, dtype):
        _total(planner, node, [[node]], dtype)
    return planner.places[node, "tensor"]


def _rounds(planner: Planner, node: Node, dtype: str) -> bool:
    """Whether an activation's gradient is held in fp32, because the kernel's other result is, and must be rounded."""
    if node.op is Op.VJP and node["of"] in ("capture", "sink"):
        return False
    return planner.buffers[planner.places[node, "tensor"]].dtype != dtype


def _groups(planner: Planner, node: Node) -> list[list[Node]]:
    """The terms of a gradient, those of one softmax that a single kernel sums together."""
    groups: list[list[Node]] = []
    for term in terms(node):
        if term.op not in (Op.VJP, Op.INPUT):
            raise planner.refuse(term, "a gradient is a sum of adjoints; no kernel computes this")
        mine = next((g for g in groups if alike(g[0], term)), None)
        groups.append([term]) if mine is None else mine.append(term)
    for group in groups:
        if shared(group[0]) and not through_lists(group[0]):
            _complete(planner, group)
    return groups


def _complete(planner: Planner, group: list[Node]) -> None:
    """A kernel that sums over the pieces of a softmax gives the gradient of all branches, or of none."""
    first = group[0]
    wanted = [b for b in branches(pull(first).owner) if first["of"] == "q" or first["capture"] in b.captures]
    if {vjp.src[0] for vjp in group} != set(wanted):
        raise planner.refuse(first, "the branches of one softmax have one gradient together; ask for their sum")


def _written_gradient(planner: Planner, vjp: Node, source: Source) -> None:
    """Adjoints of a bank and of what reads it."""
    written = vjp.src[0].src[1] if vjp.src[0].op is Op.RECALL else vjp.src[0]
    (ladder_gradient if is_ladder(written) else scan_gradient)(planner, vjp, source)


_OF_STATES: dict[Op, Callable[[Planner, Node, Source], None]] = {
    **dict.fromkeys((Op.STATE, Op.WRITE, Op.RECALL), _written_gradient),
    Op.NORM2: row_gradient,
    Op.ROW_LSE: row_gradient,
    Op.MASS: mass_gradient,
    Op.MIXTURE: mixture_gradient,
}


def _one(planner: Planner, group: list[Node], result: Node, dtype: str) -> None:
    """Plan the adjoints of one group, whose buffer belongs to ``result``."""
    vjp = group[0]
    source = lambda node, kind: gradient(planner, node, kind)  # noqa: E731
    if vjp["of"] == "list":
        list_gradient(planner, vjp, source)
    elif vjp.src[0].op is Op.ATTEND:
        (gathered_gradient if through_lists(vjp) else tiled_gradient)(planner, vjp, result, dtype, source)
    elif vjp.src[0].op is Op.MERGE:
        merge_gradient(planner, vjp, source)
    elif vjp.src[0].op is Op.MAP:
        (gate_gradient if vjp.src[0] in planner.absorbed else map_gradient)(planner, vjp, source)
    elif vjp.src[0].op is Op.SUMMARY:
        summary_gradient(planner, vjp, dtype, source)
    elif vjp.src[0].op is Op.PREFIX:
        prefix_gradient(planner, vjp, dtype, source)
    elif vjp.src[0].op in _OF_STATES:
        _OF_STATES[vjp.src[0].op](planner, vjp, source)
    elif vjp.src[0].op is Op.SCORE and vjp.src[0]["fn"] == "router":
        route_gradient(planner, vjp, source)
    elif vjp.src[0].op is Op.SCORE:
        score_gradient(planner, vjp, dtype, source)
    else:
        raise planner.refuse(vjp, f"no kernel computes the gradient of {vjp.src[0].op.value} yet; the oracle does")


def _total(planner: Planner, node: Node, groups: list[list[Node]], dtype: str) -> None:
    """A kernel that adds the groups up in fp32 and rounds once."""
    for group in groups:
        if group[0].op is Op.INPUT:
            planner.input(group[0])
        elif (group[0], "tensor") not in planner.places:
            _one(planner, group, group[0], "float32")
    parts = [planner.places[group[0], "tensor"] for group in groups]
    if node.kind == "tensor" and len(node.shape) == 5:  # of the states before the first token
        states_sum(planner, node, parts)
        return
    out, rank = planner.temporary(node, "tensor", node.shape, dtype), len(node.shape)
    few = rank > 3 and planner.sizes.value(node.shape[-1]) < 16  # the weights of a few parts
    if few or rank < 3 or (rank == 3 and node.shape[0] is var("B")):
        total: Expr = reduce(lambda a, b: a + b, map(symbol, range(len(parts))))
        plan_map(planner, node, out, [(part, node, Row()) for part in parts], total)
        return
    spec = Total(
        name=f"total_{out}",
        terms=tuple(parts),
        out=out,
        heads=planner.sizes.value(node.shape[-2]),
        dim=planner.sizes.value(node.shape[-1]),
        length="N",
        term_dtypes=tuple(planner.buffers[p].dtype for p in parts),
        out_dtype=dtype,
        batched=rank == 4,
    )
    length = node.shape[-3]
    planner.add(spec, parts, [out], [node], {"N": length, "TQ": length, "TK": planner.token_length})
