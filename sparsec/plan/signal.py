"""The training signal of a selector: how far its scores are from the attention that its choice got."""

from __future__ import annotations

from dataclasses import replace

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.scores import unit_size
from sparsec.plan.honours import honours
from sparsec.plan.index_specs import Divergence, ListSum
from sparsec.plan.planner import Planner
from sparsec.plan.specs import GatheredAttention, Selector


def signal(planner: Planner, node: Node) -> str:
    """The buffer of a loss, planned on first use; its target is planned already, with its log-sum-exp."""
    if (node, "tensor") in planner.places:
        return planner.places[node, "tensor"]
    honours(planner, node, "fn", "coefficient")
    if node["fn"] != "kl" or len(node.positional) == 1:
        raise planner.refuse(
            node, "only the divergence over a list of chosen units has a kernel yet; the oracle runs it"
        )
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
    own = Divergence(f"divergence_{loss}", index, columns, mass, loss, total, lse, float(coefficient))
    planner.specs[node] = own
    planner.follow(chosen, own, [*index_reads(index), mass], [loss, total, lse], [node])
    return loss


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
    if not isinstance(forward, Selector) or forward.softmax or forward.group == "max":
        raise planner.refuse(
            node, "only scores that are dots, sums or means of them, or an indexer's have a kernel here"
        )
    pooled = chosen.src[0]
    if scores is not pooled and not (pooled.op is Op.REDUCE and pooled["over"] == "blocks" and pooled.src[0] is scores):
        raise planner.refuse(node, "it compares the scores that were chosen from, or those under their pool")
    if scores is pooled and forward.pool is not None:
        raise planner.refuse(node, "scores after a pool have no gradient kernel; compare those under the pool")
    if not forward.batched:
        raise planner.refuse(node, "learned keys that every batch entry shares have no gradient kernel yet")
    return replace(forward, pool=None, visible=None, weights=None, weights_out=None, hard_out=None)


def reads(forward: GatheredAttention) -> list[str]:
    """What a walk over the keys of attention reads."""
    assert forward.lse is not None
    return [forward.q, forward.k, forward.indices, forward.lse, *(c.name for c in forward.captures)]


def index_reads(index: Selector) -> list[str]:
    """What a walk over scored columns reads."""
    return [index.q, index.keys, index.indices, *([index.head_weights] if index.head_weights else [])]
