"""The training signal of a selector: how far its scores are from the attention that its choice got."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.scores import ONE, unit_size
from sparsec.plan.attention.memories import hold
from sparsec.plan.honours import honours
from sparsec.plan.planner import Planner
from sparsec.plan.selection.parts import scores_alone
from sparsec.plan.selection.signal_specs import Divergence, ListSum
from sparsec.plan.specs import GatheredAttention, Selector, TiledAttention
from sparsec.scalar.expr import Expr


def signal(planner: Planner, node: Node) -> str:
    """The buffer of a loss, planned on first use; its target is planned already, with its log-sum-exp."""
    if (node, "tensor") in planner.places:
        return planner.places[node, "tensor"]
    honours(planner, node, "fn", "coefficient")
    if node["fn"] != "kl":
        raise planner.refuse(node, "only kl has a kernel yet; the oracle runs it")
    if len(node.positional) == 1:
        return dense_signal(planner, node)
    scores, chosen = node.positional
    target, index = attention(planner, node), scorer(planner, node, scores, chosen)
    columns = 1 if unit_size(scores) != 1 else chosen.integer("size")
    lists, width = chosen.shape[:3], planner.sizes.value(chosen.shape[3]) * columns
    mass = planner.temporary(node, "mass", (*lists, chosen.shape[3] * columns), "float32")
    spec = ListSum(f"attention_{mass}", target, "mass", columns, mass)
    assert width == index.slots * columns
    planner.follow(node.operands["target"], spec, reads(target), [mass], [])
    total, lse = (planner.temporary(node, part, lists, "float32") for part in ("total", "index_lse"))
    loss = planner.temporary(node, "tensor", node.shape, "float32")
    coefficient = node["coefficient"]
    assert isinstance(coefficient, float | int)
    kept = ranked(planner, scores, chosen)
    own = Divergence(f"divergence_{loss}", index, columns, mass, loss, total, lse, float(coefficient), scores=kept)
    planner.specs[node] = own
    scored = index_reads(index) if kept is None else [kept]
    planner.follow(chosen, own, [*scored, mass], [loss, total, lse], [node])
    return loss


def compared(nodes: Iterable[Node]) -> frozenset[Node]:
    """The choices whose own scores some loss compares with attention."""
    losses = [n for n in nodes if n.op is Op.AUX and n["fn"] == "kl" and len(n.positional) == 2]
    return frozenset(n.src[1] for n in losses if n.src[0] is n.src[1].src[0])


def ranked(planner: Planner, scores: Node, chosen: Node) -> str | None:
    """The scores that a choice ranked and kept, where they are more than products and are what is compared."""
    forward = planner.specs.get(chosen)
    return forward.scores_out if isinstance(forward, Selector) and scores is chosen.src[0] else None


def dense_signal(planner: Planner, node: Node) -> str:
    """The loss over all keys that a dense attend sees."""
    forward, (index, dims) = all_keys(planner, node), scored(planner, node)
    total, lse = (planner.temporary(node, part, node.shape, "float32") for part in ("total", "index_lse"))
    loss = planner.temporary(node, "tensor", node.shape, "float32")
    coefficient = node["coefficient"]
    assert isinstance(coefficient, float | int)
    own = Divergence(f"divergence_{loss}", index, 1, None, loss, total, lse, float(coefficient), forward)
    planner.specs[node] = own
    target = planner.specs[node.operands["target"]]
    params = next(k.params for k in planner.kernels if k.spec is target)
    extra = {name: value for name, value in params if name not in ("B", "q_offset")}
    planner.add(own, dense_reads(own), [loss, total, lse], [node], {**extra, **dims})
    return loss


def all_keys(planner: Planner, node: Node) -> GatheredAttention:
    """A dense attend as if a list held all its keys."""
    target = planner.specs.get(node.operands["target"])
    piece = target.pieces[0] if isinstance(target, TiledAttention) and len(target.pieces) == 1 else None
    if not isinstance(target, TiledAttention) or piece is None or piece.length != "TK" or not piece.batched:
        raise planner.refuse(node, "its target must be one dense attend over the tokens that positions count along")
    attend, scores = node.operands["target"], node.src[0]
    kinds = {scores.shape[2]: "token", attend.src[0].shape[2]: "head", attend.src[1].shape[2]: "kv_head"}
    scope = "token" if scores.shape[2] is ONE else kinds.get(scores.shape[2], "token")
    return GatheredAttention(
        target.name, target.q, piece.k, piece.v, "", None, target.out, target.lse, scope, 1, 1, target.heads,
        target.kv_heads, target.head_dim, target.value_dim, target.scale, target.dtype, where=piece.where,
        bias=piece.bias, captures=piece.captures, softcap=target.softcap, out_dtype=target.out_dtype,
    )  # fmt: skip


def scored(planner: Planner, node: Node) -> tuple[Selector, dict[str, Expr]]:
    """How all keys are scored, and the launch parameters of that."""
    scores, sizes = node.src[0], planner.sizes
    group = scores if scores.op is Op.REDUCE and scores["over"] == "group" and scores["pre"] == "none" else None
    score = group.src[0] if group is not None else scores
    if score.op is not Op.SCORE or score["fn"] not in ("dot", "indexer") or score.src[1].kind != "memory":
        raise planner.refuse(
            node, "only scores of tokens that are dots, sums or means of them, or an indexer's have one"
        )
    if group is not None and group["op"] == "max":
        raise planner.refuse(node, "a maximum over the group has no gradient in a kernel; use its mean or sum")
    honours(planner, score, "fn", "scale", "detach")
    q, keys = score.src[:2]
    held, scale, weights = hold(planner, keys, exact=True), score.expr("scale"), score.operands.get("head_weights")
    spec = Selector(
        planner.name(scores), planner.input(q), held.k, "", None, sizes.value(q.shape[2]), sizes.value(keys.shape[2]),
        sizes.value(q.shape[3]), "N", "N", 1.0 if scale is None else sizes.number(scale), 1, 1, sizes.dtype,
        group=str(group["op"]) if group is not None else None,
        head_weights=planner.input(weights) if weights is not None else None,
    )  # fmt: skip
    return spec, {"TQ": q.shape[1], "N": keys.shape[1]}


def dense_reads(own: Divergence) -> list[str]:
    """What a walk over all keys reads."""
    forward, index = own.dense, own.index
    assert forward is not None and forward.lse is not None
    named = [forward.q, forward.k, forward.lse, *(c.name for c in forward.captures), index.q, index.keys]
    return [*named, *([index.head_weights] if index.head_weights else [])]


def attention(planner: Planner, node: Node) -> GatheredAttention:
    """The forward kernel of the attention that scores are compared with."""
    target = planner.specs.get(node.operands["target"])
    chosen = node.src[1]
    if not isinstance(target, GatheredAttention) or target.indices != planner.places.get((chosen, "indices")):
        raise planner.refuse(node, "its target must read the list that is compared; give the attend that does")
    return target


def scorer(planner: Planner, node: Node, scores: Node, chosen: Node) -> Selector:
    """How columns are scored: as for the choice, without a pool that comes after these scores."""
    forward = planner.specs.get(chosen)
    assert isinstance(forward, Selector)
    pooled, kept = chosen.src[0], ranked(planner, scores, chosen)
    if kept is None and (forward.softmax or forward.group == "max" or forward.cosine):
        said = "under a pool only dots, sums or means of them are compared"
        raise planner.refuse(node, f"{said}; compare the scores that are chosen from")
    if scores is not pooled and not (pooled.op is Op.REDUCE and pooled["over"] == "blocks" and pooled.src[0] is scores):
        raise planner.refuse(node, "it compares the scores that were chosen from, or those under their pool")
    if not forward.batched:
        raise planner.refuse(node, "learned keys that every batch entry shares have no gradient kernel yet")
    return replace(scores_alone(forward), pool=None, visible=None, parents=None, query_block=1)


def reads(forward: GatheredAttention) -> list[str]:
    """What a walk over the keys of attention reads."""
    assert forward.lse is not None
    return [forward.q, forward.k, forward.indices, forward.lse, *(c.name for c in forward.captures)]


def index_reads(index: Selector) -> list[str]:
    """What a walk over scored columns reads."""
    return [index.q, index.keys, index.indices, *([index.head_weights] if index.head_weights else [])]
