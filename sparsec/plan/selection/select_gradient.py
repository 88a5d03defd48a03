"""Adjoints of summaries, and of selectors through the weights of what they chose."""

from __future__ import annotations

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.plan.grad_specs import SelectorGradKeys, SelectorGradQ, SummariseGrad
from sparsec.plan.planner import Planner
from sparsec.plan.row_dot import Source
from sparsec.plan.selection.signal_gradient import index_gradient
from sparsec.plan.specs import Selector

WAYS = "Declare selector_gradient = none on the topk, or choose by scores without softmax and pool."


def summary_gradient(planner: Planner, vjp: Node, dtype: str, source: Source) -> None:
    """Plan the spread of a summary's gradient over its tokens."""
    memory, part = vjp.src[0], str(vjp["of"])
    if memory["fn"] != "mean":
        raise planner.refuse(vjp, f"no kernel computes the gradient of summaries with fn = {memory['fn']} yet")
    forward = planner.summaries.get((memory, part))
    if forward is None:
        raise planner.refuse(vjp, "its summaries are not computed in the forward pass")
    grad = source(vjp.positional[1], "float32")
    out_dtype = planner.precision(vjp, dtype)
    out = planner.temporary(vjp, "tensor", vjp.shape, out_dtype)
    kinds = planner.buffers[grad].dtype, out_dtype
    spec = SummariseGrad(f"grad_{out}", forward, grad, out, *kinds)
    dims = {forward.length: memory.shape[1], "TK": vjp.shape[1], "TQ": vjp.shape[1]}
    planner.add(spec, [grad], [out], [vjp], dims)


def score_gradient(planner: Planner, vjp: Node, dtype: str, source: Source) -> None:
    """Plan the gradient of a selector's queries or keys: from weights to scores once, then to either side."""
    below, covers = _below(planner, vjp)
    if below.src[0].op is not Op.WEIGHTS:
        index_gradient(planner, vjp, below, covers, dtype, source)
        return
    weights, covers = below, [*covers, below]
    topk, of = weights.src[0].src[1], vjp["of"]
    forward = planner.specs.get(topk)
    if not isinstance(forward, Selector) or forward.softmax or forward.pool is not None:
        said = "only scores that are chosen without a softmax or a pool before have a gradient"
        raise planner.refuse(vjp, f"{said}. {WAYS}")
    if not forward.batched:
        raise planner.refuse(vjp, "learned keys that every batch entry shares have no gradient kernel yet")
    if forward.weights == "softmax_all":
        raise planner.refuse(vjp, "weights with renormalise = false have no gradient kernel yet; the oracle has one")
    q_side = next((v for v in planner.vjps if v.src[0] is vjp.src[0] and v["of"] == "q"), None)
    if weights not in planner.score_grads:
        _through_weights(planner, weights, q_side, (topk, forward), covers, source, dtype)
    if of == "keys":
        out_dtype = planner.precision(vjp, dtype)
        out = planner.temporary(vjp, "tensor", vjp.shape, out_dtype)
        scores_grad = planner.score_grads[weights]
        keys = SelectorGradKeys(f"grad_{out}", forward, scores_grad, out, out_dtype)
        planner.follow(topk, keys, [forward.q, forward.indices, scores_grad], [out], [vjp])
    elif of != "q":
        raise planner.refuse(vjp, f"no kernel computes the gradient of {of} of a score yet")


def _through_weights(
    planner: Planner,
    weights: Node,
    q_side: Node | None,
    selector: tuple[Node, Selector],
    covers: list[Node],
    source: Source,
    dtype: str,
) -> None:
    topk, forward = selector
    assert forward.weights_out is not None
    grad = source(weights.positional[1], "float32")
    out_dtype = "float32" if q_side is None else planner.precision(q_side, dtype)
    out = planner.temporary(q_side, "tensor", q_side.shape, out_dtype) if q_side is not None else None
    lists = weights.src[0].shape
    scores_grad = planner.temporary(weights, "chosen", lists, "float32")
    spec = SelectorGradQ(f"grad_{out or scores_grad}", forward, grad, scores_grad, out, out_dtype)
    read = [forward.q, forward.keys, forward.indices, forward.weights_out, grad]
    mine = [*covers, *([q_side] if q_side is not None else [])]
    planner.follow(topk, spec, read, [scores_grad, *([out] if out else [])], mine)
    planner.score_grads[weights] = scores_grad


def _below(planner: Planner, vjp: Node) -> tuple[Node, list[Node]]:
    """The adjoint that a score's gradient comes from: of weights, a training signal or a straight-through choice.

    With it the adjoints between them.
    """
    node, covers = vjp.positional[1], []
    while node.op is Op.VJP and node.src[0].op is Op.REDUCE and node.src[0]["over"] == "group":
        if node.src[0]["op"] == "max":
            raise planner.refuse(vjp, "a maximum over the group has no gradient in a kernel; use its mean or sum")
        covers.append(node)
        node = node.positional[1]
    if node.op is not Op.VJP or node.src[0].op not in (Op.WEIGHTS, Op.AUX, Op.TOPK):
        said = "scores have a gradient through the weights of what was chosen, a loss or the choice itself"
        raise planner.refuse(vjp, f"{said}. {WAYS}")
    return node, covers
