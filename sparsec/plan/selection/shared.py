"""Lists that all queries share: their selector, and which units they hold as a tensor that masks can read."""

from __future__ import annotations

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.plan.attention.memories import hold
from sparsec.plan.honours import honours
from sparsec.plan.planner import Planner
from sparsec.plan.selection.shared_specs import Members, SetSelector

KINDS = "a list for all queries is chosen by scores reduced over heads, then queries (max), then blocks (max) or none"


def members(planner: Planner, node: Node, name: str) -> str:
    """The buffer of a list's members, planned on first use under the name by which a mask reads it."""
    if (node, "tensor") in planner.places:
        return planner.places[node, "tensor"]
    topk = node.src[0]
    indices, units = select_set(planner, topk), node.shape[1]
    out = planner.fresh(name, node.shape, "int32")
    planner.places[node, "tensor"] = out
    spec = Members(f"members_{out}", indices, out, topk.integer("k"), "NB")
    dims = {"NB": units, "TQ": topk.src[0].shape[1], "TK": planner.token_length}
    planner.add(spec, [indices], [out], [node], dims)
    return out


def select_set(planner: Planner, topk: Node) -> str:
    """The buffer of a list's indices."""
    if (topk, "indices") in planner.places:
        return planner.places[topk, "indices"]
    score, heads, pool = _chain(planner, topk)
    honours(planner, topk, "k", "slots", "unit", "size", "scope", "selector_gradient")
    q, keys = score.src[:2]
    if keys.kind != "memory":
        raise planner.refuse(score, "a list for all queries scores the keys of a memory, not a plain tensor yet")
    held = hold(planner, keys, exact=True)
    scale, sizes, units = score.expr("scale"), planner.sizes, topk.src[0].shape[3]
    indices = planner.temporary(topk, "indices", topk.shape, "int32")
    spec = SetSelector(
        name=f"select_{indices}",
        q=planner.input(q),
        keys=held.k,
        indices=indices,
        heads=sizes.value(q.shape[2]),
        kv_heads=sizes.value(keys.shape[2]),
        dim=sizes.value(q.shape[3]),
        key_length="N",
        block_length="NB",
        scale=1.0 if scale is None else sizes.number(scale),
        cosine=score.word("fn") == "cosine",
        group=heads.word("op"),
        pool=1 if pool is None else pool.integer("kernel"),
        k=topk.integer("k"),
        dtype=sizes.dtype,
        key_dtype=planner.buffers[held.k].dtype,
    )
    covers = [topk, topk.src[0], score, heads]
    dims = {"TQ": q.shape[1], "TK": planner.token_length, "N": keys.shape[1], "NB": units}
    planner.specs[topk] = spec
    planner.add(spec, [spec.q, spec.keys], [indices], dict.fromkeys(covers), dims)
    return indices


def _chain(planner: Planner, topk: Node) -> tuple[Node, Node, Node | None]:
    """The score, its reduction over heads and its pool; what has no kernel is refused."""
    node, pool = topk.src[0], None
    if node.op is Op.REDUCE and node["over"] == "blocks":
        honours(planner, node, "over", "op", "kernel", "stride", "padding")
        if node["op"] != "max" or node["kernel"] != node["stride"] or node["padding"]:
            raise planner.refuse(node, f"{KINDS}; blocks that overlap have none here")
        node, pool = node.src[0], node
    if node.op is not Op.REDUCE or node["over"] != "queries" or node["op"] != "max":
        raise planner.refuse(node, KINDS)
    honours(planner, node, "over", "op")
    heads = node.src[0]
    if heads.op is not Op.REDUCE or heads["over"] != "heads" or heads.src[0].op is not Op.SCORE:
        raise planner.refuse(heads, KINDS)
    honours(planner, heads, "over", "op")
    score = heads.src[0]
    honours(planner, score, "fn", "scale", "detach")
    if score["fn"] not in ("dot", "cosine"):
        raise planner.refuse(score, f"{KINDS}, of dots or cosines; fn = {score['fn']} has no kernel here")
    return score, heads, pool
