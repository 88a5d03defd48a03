"""Routes: which parts of a bank every token writes and reads, given or chosen by a router; the router's loss."""

from __future__ import annotations

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.plan.honours import honours
from sparsec.plan.planner import Planner
from sparsec.plan.selection.parents import Parents
from sparsec.plan.states.route_specs import Balance, Router
from sparsec.plan.states.scan_specs import Operand, Route


def route_of(planner: Planner, written: Node) -> Route | None:
    """The route of a written bank; None where it has one state per head."""
    chosen, bank = written.operands.get("route"), written.src[0]
    if chosen is None:
        return None
    return route_among(planner, written, chosen, planner.sizes.value(bank.shape[2]), planner.sizes.value(bank.shape[1]))


def route_among(planner: Planner, written: Node, chosen: Node, heads: int, parts: int) -> Route:
    """The route of what is written by a node to some parts per head."""
    weight, lists = written.operands.get("weight"), planner.sizes.value(chosen.shape[2])
    if lists not in (1, heads):
        raise planner.refuse(written, f"its route has {lists} lists for {heads} states; give one, or one per state")
    ids = listed(planner, chosen)
    e, softmax = None, weight is not None and weight.op is Op.WEIGHTS
    if weight is not None:
        name = planner.places[weight, "weights"] if softmax else planner.input(weight)
        e = Operand(name, planner.buffers[name].dtype)
    slots = planner.sizes.value(chosen.shape[3])
    return Route(ids, parts, slots, lists, e, written.flag("freeze_unselected"), softmax)


def shares(planner: Planner, weights: Node) -> str:
    """The buffer of the weights of chosen parts, planned on first use."""
    if weights.src[1].op is not Op.TOPK or weights.src[1]["unit"] != "part":
        raise planner.refuse(weights, "kernels read weights of parts here; compute others before the call")
    listed(planner, weights.src[1])
    return planner.places[weights, "weights"]


def listed(planner: Planner, chosen: Node) -> str:
    """The buffer of a list of parts, planned on first use."""
    if chosen.op is Op.GIVEN:
        if chosen.operands:
            raise planner.refuse(chosen, "counts of parts have no kernel yet; put -1 where there is none")
        return planner.input(chosen.src[0])
    if (chosen, "indices") not in planner.places:
        _router(planner, chosen)
    return planner.places[chosen, "indices"]


def _router(planner: Planner, topk: Node) -> None:
    score, sizes = topk.src[0], planner.sizes
    if score.op is not Op.SCORE or score["fn"] != "router" or len(score.src[1].shape) != 3:
        raise planner.refuse(topk, "parts are chosen by scores of a router with learned rows [parts,1,DX]")
    honours(planner, score, "fn", "scale", "detach")
    honours(planner, topk, "k", "slots", "unit", "scope", "selector_gradient", "fanout", "count_forced")
    if sizes.value(score.shape[2]) != 1:
        raise planner.refuse(topk, "a router has one list of parts for all heads; give x one head")
    weights = planner.weights.get(topk)
    x, rows = (planner.input(source) for source in score.src[:2])
    ids = planner.temporary(topk, "indices", topk.shape, "int32")
    shares = planner.temporary(score, "shares", score.shape, "float32")
    out = planner.temporary(weights, "weights", topk.shape, "float32") if weights is not None else None
    scale = score.expr("scale")
    spec = Router(
        name=f"route_{ids}",
        x=x,
        rows=rows,
        ids=ids,
        shares=shares,
        weights=out,
        parts=sizes.value(score.shape[3]),
        dim=sizes.value(score.src[0].shape[3]),
        slots=topk.integer("slots"),
        scale=1.0 if scale is None else sizes.number(scale),
        dtype=planner.buffers[x].dtype,
        rows_dtype=planner.buffers[rows].dtype,
        renormalise=weights is not None and _renormalised(planner, weights),
        within=_within(planner, topk),
    )
    planner.specs[topk] = spec
    if spec.renormalise and spec.slots == 1:
        one = "the only part of a token has weight 1 whatever its score"
        planner.notes.append(f"{planner.name(topk)}: {one}, so the router learns nothing by it; renormalise = false")
    covers = [topk, score, *([weights] if weights is not None else [])]
    dims = {"N": topk.shape[1], "TQ": topk.shape[1], "TK": topk.shape[1]}
    read = [x, rows, *([spec.within.ids] if spec.within is not None else [])]
    planner.add(spec, read, [ids, shares, *([out] if out else [])], covers, dims)


def _renormalised(planner: Planner, weights: Node) -> bool:
    if weights["fn"] != "softmax":
        raise planner.refuse(weights, f"weights of parts are a softmax; fn = {weights['fn']} has no kernel here")
    honours(planner, weights, "fn", "renormalise")
    return weights.flag("renormalise")


def _within(planner: Planner, topk: Node) -> Parents | None:
    above = topk.operands.get("within")
    if above is None:
        return None
    return Parents(listed(planner, above), 1, planner.sizes.value(above.shape[3]), topk.integer("fanout"))


def balance(planner: Planner, node: Node) -> str:
    """The buffer of a load balance, planned on first use."""
    if (node, "tensor") in planner.places:
        return planner.places[node, "tensor"]
    scores, chosen = node.positional
    listed(planner, chosen)
    router = planner.specs.get(chosen)
    if not isinstance(router, Router) or chosen.src[0] is not scores:
        raise planner.refuse(node, "the load balance is that of a router's own scores and choice")
    coefficient = node["coefficient"]
    assert isinstance(coefficient, float | int)
    loss = planner.temporary(node, "tensor", node.shape, "float32")
    slopes = planner.temporary(node, "slopes", [scores.shape[3]], "float32")
    spec = Balance(f"balance_{loss}", router, float(coefficient), loss, slopes)
    planner.specs[node] = spec
    planner.follow(chosen, spec, [router.shares, router.ids], [loss, slopes], [node])
    return loss
