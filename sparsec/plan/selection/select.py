"""The streaming selector's matcher: claims a topk with its chain of scores, and the weights over the same scores."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sparsec.ir.adjoint import passes_straight
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.predicates import started
from sparsec.ir.scores import ceil_div
from sparsec.plan.attention.memories import hold
from sparsec.plan.honours import honours
from sparsec.plan.planner import Planner
from sparsec.plan.selection.parents import Parents
from sparsec.plan.selection.parts import ids_alone
from sparsec.plan.specs import Pool, Selector
from sparsec.scalar.expr import Expr, call, var
from sparsec.scalar.fn import Fn


@dataclass(slots=True)
class Chain:
    """A chain of scores from its top down to the ``score`` node."""

    score: Node
    group: Node | None = None
    pool: Node | None = None
    covers: tuple[Node, ...] = ()
    bias: Node | None = None


def follow(planner: Planner, topk: Node) -> Chain:
    """Walk from a topk to its scores; a chain that the selector cannot run is refused in one sentence."""
    node, covers = topk.src[0], [topk]
    group = pool = bias = None
    while node.op is not Op.SCORE:
        covers.append(node)
        if node.op is Op.BIAS and node is topk.src[0]:
            bias = node
        elif node.op is not Op.REDUCE:
            raise planner.refuse(node, "the selector reduces and pools scores, then biases them: write the bias last")
        elif node["over"] in ("overlap", "blocks") and pool is None and group is None:
            pool = node
            honours(planner, node, *_POOLED[str(node["over"])])
        elif node["over"] == "group" and group is None:
            group = node
            honours(planner, node, "over", "op", "pre", "visible")
        else:
            said = f"the selector takes one reduction over the group, then one pooling; found over = {node['over']}"
            turned = group is not None and node["over"] in ("overlap", "blocks")
            fix = ". Fix: reduce over the group first and pool what that gives" if turned else ""
            raise planner.refuse(node, said + fix)
        node = node.src[0]
    chain = Chain(node, group, pool, (*covers, node), bias)
    _check(planner, topk, chain)
    return chain


def _check(planner: Planner, topk: Node, chain: Chain) -> None:
    """Refuse scores that are made, reduced or chosen from as the selector does not."""
    node, group, pool = chain.score, chain.group, chain.pool
    if pool is not None and group is not None:
        _both(planner, pool, group)
    if node["fn"] not in ("dot", "cosine", "indexer"):
        known = "the selector scores by dots, cosines or an indexer"
        raise planner.refuse(node, f"{known}; fn = {node['fn']} has no kernel yet")
    if node["fn"] == "indexer" and (group or pool or chain.bias) is not None:
        said = "an indexer's scores are chosen from as they are; pools of them and a bias have no kernel yet"
        raise planner.refuse(topk, said)
    if topk["scope"] == "query_set":
        raise planner.refuse(topk, "the selector lists units per token; scope = query_set has no kernel here yet")
    honours(planner, node, "fn", "scale", "detach", "rounding")
    honours(planner, topk, *_CHOSEN)


def _both(planner: Planner, pool: Node, group: Node) -> None:
    """Refuse a softmax, or what it sees, where a pool comes after a reduction over the group."""
    if pool.word("pre") == "softmax":
        raise planner.refuse(pool, "pre = softmax is carried out per head: write it at the reduction over the group")
    if group.word("pre") == "softmax" and pool.expr("visible") is not None:
        raise planner.refuse(pool, "`visible` counts where the softmax is: write it at the reduction over the group")


_POOLED = {
    "overlap": ("over", "pre", "visible", "size", "stride", "block", "importance"),
    "blocks": ("over", "op", "pre", "visible", "kernel", "stride", "padding"),
}
_CHOSEN = (
    "k", "slots", "unit", "size", "scope", "eligible", "forced", "count_forced", "order", "selector_gradient", "fanout",
    "query_block",
)  # fmt: skip


def select(planner: Planner, selection: Node, weights: Node | None) -> tuple[str, str | None]:
    """The buffers of a selection's indices and of its weights (``weights`` is the node that asks for them)."""
    if selection.op is Op.GIVEN:
        indices = planner.input(selection.src[0])
        return indices, planner.input(weights) if weights is not None else None
    own = weights is not None and weights.op is Op.WEIGHTS
    if weights is not None and own and (weights.src[1] is not selection or weights.src[0] is not selection.src[0]):
        raise planner.refuse(
            weights, "weights are computed where the scores are chosen: give them the topk's own scores"
        )
    if (selection, "indices") not in planner.places:
        _plan(planner, selection, weights if own else None)
    elif own and (weights, "weights") not in planner.places:
        raise planner.refuse(
            selection, "read with and without weights; declare the weights in every attend that reads it"
        )
    found = planner.places[selection, "indices"]
    if weights is not None and not own and _ranked_anew(planner, selection):
        raise planner.refuse(selection, "given weights follow the first query's ranks: order = newest or oldest")
    if weights is None:
        return found, None
    return found, planner.places[weights, "weights"] if own else planner.input(weights)


def _ranked_anew(planner: Planner, selection: Node) -> bool:
    """Whether queries that share a list have it by ranks of their own."""
    forward = planner.specs.get(selection)
    shared = selection.integer("query_block") != 1 and selection.word("order") == "score"
    return shared and isinstance(forward, Selector) and forward.query_block == 1


def own_first(selection: Node, tokens: Expr) -> bool:
    """Whether the chunk at a query's own position comes first in its list, where there is one.

    So it is where all chunks of the ``tokens`` are scored, just that one is forced, and those that have started are
    chosen: none before position 0.
    """
    if selection.op is not Op.TOPK or selection["unit"] != "chunk" or selection["order"] != "score":
        return False
    if selection.operands or selection["query_block"] != 1:  # which may leave it out
        return False
    size = selection.integer("size")
    forced = call(Fn.EQ, var("c"), var("i") // size)
    known = selection.expr("forced") is forced and selection.expr("eligible") is started(size)
    return known and bool(selection["count_forced"]) and selection.src[0].shape[3] is ceil_div(tokens, size)


def _plan(planner: Planner, topk: Node, weights: Node | None) -> None:
    chain, sizes = follow(planner, topk), planner.sizes
    q, keys = chain.score.src[:2]
    held = hold(planner, keys, exact=chain.score.word("rounding") == "none") if keys.kind == "memory" else None
    key_buffer = held.k if held else planner.input(keys)
    b, tq, heads, slots = topk.shape
    indices = planner.temporary(topk, "indices", (b, tq, heads, slots), "int32")
    out, hard = _weighed_out(planner, topk, weights) if weights is not None else (None, None)
    key_heads = keys.shape[2] if keys.kind == "memory" else keys.shape[-2]
    head_weights = chain.score.operands.get("head_weights")
    scale = chain.score.expr("scale")
    tokens = held.tokens if held and held.tokens is not None else planner.token_length
    group = chain.group
    shares = group if group is not None and (chain.pool is None or group.word("pre") == "softmax") else chain.pool
    length = keys.shape[1] if keys.kind == "memory" else keys.shape[-3]
    dims = {"TQ": q.shape[1], "TK": tokens, "N": length, "NB": topk.src[0].shape[3]}
    parents = _parents(planner, topk)
    spec = Selector(
        name=f"select_{indices}",
        q=planner.input(q),
        keys=key_buffer,
        indices=indices,
        weights_out=out,
        heads=sizes.value(q.shape[2]),
        kv_heads=sizes.value(key_heads),
        dim=sizes.value(q.shape[3]),
        key_length="N",
        block_length="NB",
        scale=1.0 if scale is None else sizes.number(scale),
        k=topk.integer("k"),
        slots=topk.integer("slots"),
        dtype=sizes.dtype,
        softmax=shares is not None and shares.word("pre") == "softmax",
        visible=planner.close(shares.expr("visible"), dims) if shares is not None else None,
        group=str(group["op"]) if group is not None else None,
        pool=_pool(chain.pool, keys),
        eligible=planner.close(topk.expr("eligible"), dims),
        forced=planner.close(topk.expr("forced"), dims),
        count_forced=bool(topk["count_forced"]),
        order=str(topk["order"]),
        weights=_weighed(planner, weights) if weights is not None else None,
        batched=held.batched if held else len(keys.shape) == 4,
        key_dtype=None if (found := planner.buffers[key_buffer].dtype) == sizes.dtype else found,
        head_weights=planner.input(head_weights) if head_weights is not None else None,
        hard_out=hard,
        scores_out=_kept_scores(planner, topk, weights) if _goes_on(chain) else None,
        bias=planner.close(chain.bias.expr("fn"), dims) if chain.bias is not None else None,
        captures=planner.captures(chain.bias, dims) if chain.bias is not None else (),
        cosine=chain.score.word("fn") == "cosine",
        parents=parents,
    )
    covers = (*chain.covers, *([weights] if weights is not None else []))
    block = topk.integer("query_block")
    if block != 1 and (spec.weights or spec.scores_out):
        spec = _shared(planner, topk, replace(spec, query_block=block), dims)
    elif block != 1:
        spec = replace(spec, query_block=block)
    planner.specs[topk] = spec
    _add(planner, spec, covers, dims)


def _add(planner: Planner, spec: Selector, covers: tuple[Node, ...], dims: dict[str, Expr]) -> None:
    read = [spec.q, spec.keys, *(c.name for c in spec.captures), *([spec.head_weights] if spec.head_weights else [])]
    read += spec.parents.buffers if spec.parents is not None else []
    written = [spec.indices, *(name for name in (spec.weights_out, spec.hard_out, spec.scores_out) if name)]
    planner.add(spec, read, written, covers, dims)


def _parents(planner: Planner, topk: Node) -> Parents | None:
    """The lists of larger units that a choice is made within, planned on first use."""
    above = topk.operands.get("within")
    if above is None:
        return None
    if above.op is not Op.TOPK and above["query_block"] != 1:
        raise planner.refuse(topk, "given lists that queries share are not chosen within; give a list per query")
    counts = above.operands.get("counts")
    indices, _ = select(planner, above, planner.weights.get(above))
    heads, own = (planner.sizes.value(list_.shape[2]) for list_ in (above, topk))
    if own % heads:
        raise planner.refuse(
            topk, f"{own} lists are chosen within those of {heads} heads; the former must be a multiple"
        )
    counted = planner.input(counts) if counts is not None else None
    return Parents(indices, heads, planner.sizes.value(above.shape[3]), topk.integer("fanout"), counted)


def _shared(planner: Planner, topk: Node, spec: Selector, dims: dict[str, Expr]) -> Selector:
    """Plan the list that a block of queries shares; the choice of each of them, which is all of it, has its scores."""
    if spec.weights == "softmax_all":
        raise planner.refuse(topk, "lists that queries share have no shares of all that is eligible in a kernel")
    shared = planner.fresh(f"{spec.indices}_shared", topk.shape, "int32")
    _add(planner, replace(ids_alone(spec), name=f"select_{shared}", indices=shared), (), dims)
    above = Parents(shared, planner.sizes.value(topk.shape[2]), spec.slots, 1)
    return replace(spec, k=spec.slots, count_forced=True, forced=None, eligible=None, parents=above, query_block=1)


def _weighed_out(planner: Planner, topk: Node, weights: Node) -> tuple[str, str | None]:
    """The buffers of weights and, of a straight-through choice, of the ones that stand for them."""
    if not passes_straight(topk):
        return planner.temporary(weights, "weights", topk.shape, "float32"), None
    soft = planner.temporary(weights, "soft", topk.shape, "float32")
    return soft, planner.temporary(weights, "weights", topk.shape, "float32")


def _goes_on(chain: Chain) -> bool:
    """Whether scores that are chosen by are no plain dots of queries and one key."""
    apart = chain.group is not None and (chain.group.word("pre") == "softmax" or chain.group.word("op") == "max")
    return apart or (chain.pool or chain.bias) is not None or chain.score.word("fn") == "cosine"


def _kept_scores(planner: Planner, topk: Node, weights: Node | None) -> str | None:
    """Where chosen scores stay for a loss, or for a backward of their weights that reads them."""
    if topk in planner.compared:
        return planner.temporary(topk, "scores", topk.shape, "float32")
    asked = any(v.src[0] is weights and v["of"] == "scores" for v in planner.vjps)
    if weights is None or weights["fn"] != "stick" or not asked:
        return None
    return planner.temporary(topk, "scores", topk.shape, "float32")


def _weighed(planner: Planner, weights: Node) -> str:
    honours(planner, weights, "fn", "renormalise")
    return "softmax_all" if not weights["renormalise"] else weights.word("fn")


def _pool(reduce: Node | None, keys: Node) -> Pool | None:
    """Summaries to blocks: the overlap sum, or a maximum, sum or mean over a window of summaries."""
    if reduce is None:
        return None
    if reduce["over"] == "overlap":
        kind = str(reduce["importance"])
        return Pool(kind, reduce.integer("size"), reduce.integer("stride"), reduce.integer("block"))
    stride = reduce.integer("stride")
    padding = reduce["padding"]
    unit = keys.integer("stride") if keys.op is Op.SUMMARY else 1
    return Pool(
        reduce.word("op"),
        unit,
        unit,
        unit * stride,
        kernel=reduce.integer("kernel"),
        stride_blocks=stride,
        padding=padding if isinstance(padding, int) else 0,
    )
