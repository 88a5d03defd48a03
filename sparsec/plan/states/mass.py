"""Masses of keys: the decayed sum of what a state was written, as a scan of states with one row, and its adjoint."""

from __future__ import annotations

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.plan.honours import honours
from sparsec.plan.maps.map_specs import Map
from sparsec.plan.planner import Planner
from sparsec.plan.row_dot import Source
from sparsec.plan.states.route import route_among
from sparsec.plan.states.scan import LENGTH, buffers, operand
from sparsec.plan.states.scan_specs import Operand, Read, Route, Scan, ScanGrad, Writes
from sparsec.scalar.expr import Expr, constant


def mass(planner: Planner, node: Node) -> str:
    """The buffer of a mass, fp32, planned on first use: a state [1,D] that every token writes with the key 1."""
    if (node, "tensor") in planner.places:
        return planner.places[node, "tensor"]
    writes = _writes(planner, node)
    out = planner.temporary(node, "tensor", node.shape, "float32")
    slot = node["slot"] if isinstance(node["slot"], int) and writes.slots > 1 else None
    read = Read(writes.k, Operand(out, "float32"), writes.heads, 1.0, slot=slot)
    spec = Scan(f"mass_{out}", writes, (read,), writes.v.dtype)
    planner.specs[node] = spec
    planner.add(spec, buffers(spec.writes), [out], [node], _dims(node))
    return out


def mass_gradient(planner: Planner, vjp: Node, source: Source) -> None:
    """Plan the kernel of all gradients of a mass that are asked for."""
    node, cotangent = vjp.positional
    mass(planner, node)
    forward = planner.specs[node]
    assert isinstance(forward, Scan)
    name = source(cotangent, "float32")  # it cancels against the keys that the mass is made of
    grad = Operand(name, planner.buffers[name].dtype)
    wanted = [v for v in planner.vjps if v.src[0] is node and v.positional[1] is cotangent]
    made = {v.word("of"): _made(planner, v) for v in wanted}
    outs = [operand.name for operand in made.values()]
    spec = ScanGrad(
        f"grad_{outs[0]}",
        forward,
        (grad,),
        None,
        (None,),
        grad_v=made.get("k"),
        grad_beta=made.get("beta"),
        grad_decay=made.get("decay"),
        grad_weight=made.get("weight"),
    )
    planner.add(spec, [*buffers(forward.writes), grad.name], outs, wanted, _dims(node))


def _writes(planner: Planner, node: Node) -> Writes:
    """Writes of the key 1 and, as the value, the token's own key."""
    honours(planner, node, "freeze_unselected", "slot")
    keys = operand(planner, node.src[0])
    heads, rows = (planner.sizes.value(dim) for dim in node.shape[2:])
    beta, decay = ((operand(planner, x) if x is not None else None) for x in map(node.operands.get, ("beta", "decay")))
    kind, ones = "none" if decay is None else "scalar", _ones(planner, node, heads, keys.dtype)
    route = _route(planner, node, heads)
    return Writes(ones, keys, heads, 1, rows, decay_kind=kind, beta=beta, decay=decay, route=route, split=True)


def _route(planner: Planner, node: Node, heads: int) -> Route | None:
    chosen = node.operands.get("route")
    if chosen is None:
        return None
    if chosen.op is not Op.TOPK or (node["slot"] is None and planner.sizes.value(chosen.shape[3]) != 1):
        raise planner.refuse(node, "a token has the mass of one part; choose it by topk with k = 1, or name its slot")
    return route_among(planner, node, chosen, heads, planner.sizes.value(chosen.src[0].shape[3]))


def _ones(planner: Planner, node: Node, heads: int, dtype: str) -> Operand:
    """The key 1 of every token ``[B,N,HKV,1]``, one buffer for all masses."""
    shape = (*node.shape[:3], constant(1))
    name = f"ones_{heads}_{dtype}"
    if name not in planner.buffers:
        name = planner.fresh(name, shape, dtype)
        one: Expr = constant(1.0)
        spec = Map(f"map_{name}", (), name, ("B", LENGTH, heads, 1), dtype, one)
        planner.add(spec, [], [name], [], _dims(node))
    return Operand(name, dtype)


def _dims(node: Node) -> dict[str, Expr]:
    length = node.shape[1]
    return {LENGTH: length, "TQ": length, "TK": length}


def _made(planner: Planner, vjp: Node) -> Operand:
    dtype = planner.precision(vjp, planner.sizes.dtype_of(vjp))
    return Operand(planner.temporary(vjp, "tensor", vjp.shape, dtype), dtype)
