"""Adjoints of summaries, and of selectors through the weights of what they chose."""

from __future__ import annotations

from dataclasses import replace

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.plan.grad_specs import SelectorGradKeys, SelectorGradQ, SummariseGrad
from sparsec.plan.planner import Planner
from sparsec.plan.row_dot import Source
from sparsec.plan.selection.pooled_specs import PooledGrad
from sparsec.plan.selection.signal import ranked
from sparsec.plan.selection.signal_gradient import index_gradient, ranked_gradient
from sparsec.plan.specs import Selector
from sparsec.scalar.derivative import derivative
from sparsec.scalar.expr import var

WAYS = "Declare selector_gradient = none on the topk, or weights of scores that it is chosen by."


def summary_gradient(planner: Planner, vjp: Node, dtype: str, source: Source) -> None:
    """Plan the spread of a summary's gradient over its tokens."""
    memory, part = vjp.src[0], str(vjp["of"])
    if memory["fn"] not in ("mean", "max"):
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
    more = [forward.x, forward.out] if forward.fn == "max" else []
    planner.add(spec, [grad, *more], [out], [vjp], dims)


def score_gradient(planner: Planner, vjp: Node, dtype: str, source: Source) -> None:
    """Plan the gradient of a selector's queries or keys: from weights to scores once, then to either side."""
    below, covers = _below(planner, vjp)
    if below.src[0].op is not Op.WEIGHTS:
        _by_list(planner, vjp, below, covers, dtype, source)
        return
    weights, covers = below, [*covers, below]
    topk, of = weights.src[0].src[1], vjp["of"]
    forward = planner.specs.get(topk)
    assert isinstance(forward, Selector)
    if not forward.batched:
        raise planner.refuse(vjp, "learned keys that every batch entry shares have no gradient kernel yet")
    _check_scores(planner, vjp, forward)
    if forward.weights == "softmax_all" or _apart(forward):
        _through_pools(planner, vjp, (topk, forward), (weights, covers), source, dtype)
        return
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


def _apart(forward: object) -> bool:
    """Whether scores are no plain products of queries and one key."""
    if not isinstance(forward, Selector):
        return False
    return forward.softmax or forward.pool is not None or forward.cosine or forward.group == "max"


def _by_list(planner: Planner, vjp: Node, below: Node, covers: list[Node], dtype: str, source: Source) -> None:
    """Plan the same from gradients of a list's scores: of a loss, or straight through the choice."""
    primal = below.src[0]
    if primal.op is Op.TOPK and primal["query_block"] != 1:
        said = "lists that queries share pass nothing straight through in a kernel yet; the oracle has it"
        raise planner.refuse(vjp, f"{said}: query_block = 1")
    if primal.op is Op.TOPK and _apart(planner.specs.get(primal)):
        _straight(planner, vjp, (below, [*covers, below]), source, dtype)
    elif primal.op is Op.AUX and _ranked_apart(planner, primal):
        if below not in planner.score_grads:
            ranked_gradient(planner, below, source)
        _straight(planner, vjp, (below, covers), source, dtype)
    else:
        index_gradient(planner, vjp, below, covers, dtype, source)


def _ranked_apart(planner: Planner, loss: Node) -> bool:
    """Whether a loss compares scores that a choice kept and that are no plain products."""
    if len(loss.positional) == 1:
        return False
    return ranked(planner, *loss.positional) is not None and _apart(planner.specs.get(loss.src[1]))


def _straight(planner: Planner, vjp: Node, below: tuple[Node, list[Node]], source: Source, dtype: str) -> None:
    """Plan the same where a loss, or a straight-through choice, hands gradients to the scores of its members."""
    node, covers = below
    topk = node.src[0] if node.src[0].op is Op.TOPK else node.src[0].src[1]
    forward = planner.specs[topk]
    assert isinstance(forward, Selector)
    if not forward.batched:
        raise planner.refuse(vjp, "learned keys that every batch entry shares have no gradient kernel yet")
    forward = replace(forward, weights=None)
    _check_scores(planner, vjp, forward)
    if node not in planner.score_grads:
        planner.score_grads[node] = source(node.positional[1], "float32")
    _through_pools(planner, vjp, (topk, forward), (node, covers), source, dtype)


def _through_pools(
    planner: Planner,
    vjp: Node,
    selector: tuple[Node, Selector],
    below: tuple[Node, list[Node]],
    source: Source,
    dtype: str,
) -> None:
    """Plan one kernel for the gradients of queries and keys behind a softmax, a pool or a maximum over heads."""
    (topk, forward), (weights, covers) = selector, below
    asked = {str(v["of"]): v for v in planner.vjps if v.src[0] is vjp.src[0] and v.positional[1] is vjp.positional[1]}
    if other := [of for of in asked if of not in ("q", "keys")]:
        raise planner.refuse(vjp, f"no kernel computes the gradient of {other[0]} of a score yet")
    if forward.pool is not None and forward.pool.kind == "mean" and not forward.softmax and forward.visible is not None:
        raise planner.refuse(vjp, "a mean over the visible summaries of a block has no gradient in a kernel; use a sum")
    if any((v, "tensor") in planner.places for v in asked.values()):
        return
    own = [node for node in covers if node is not weights]
    if weights.src[0].op is Op.TOPK:  # straight through, which hands on what is there
        own = covers
    elif forward.weights == "softmax_all":  # its slope is that of the softmax, which the same kernel finds
        planner.score_grads[weights], own = source(weights.positional[1], "float32"), covers
    elif weights not in planner.score_grads:
        _through_weights(planner, weights, None, selector, [weights], source, dtype)
    dtypes = {of: planner.precision(v, dtype) for of, v in asked.items()}
    outs = {of: planner.temporary(v, "tensor", v.shape, dtypes[of]) for of, v in asked.items()}
    scores_grad = planner.score_grads[weights]
    spec = PooledGrad(
        f"grad_{'_'.join(outs.values())}", forward, scores_grad, outs.get("q"), outs.get("keys"),
        dtypes.get("q", dtype), dtypes.get("keys", dtype),
    )  # fmt: skip
    mine = [*own, *asked.values()]
    planner.follow(topk, spec, [forward.q, forward.keys, forward.indices, scores_grad], list(outs.values()), mine)


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
    kept = [forward.scores_out] if forward.scores_out else []
    read = [forward.q, forward.keys, forward.indices, forward.weights_out, *kept, grad]
    mine = [*covers, *([q_side] if q_side is not None else [])]
    planner.follow(topk, spec, read, [scores_grad, *([out] if out else [])], mine)
    planner.score_grads[weights] = scores_grad


def _below(planner: Planner, vjp: Node) -> tuple[Node, list[Node]]:
    """The adjoint that a score's gradient comes from: of weights, a training signal or a straight-through choice.

    With it the adjoints between them.
    """
    node, covers = vjp.positional[1], []
    while node.op is Op.VJP and node.src[0].op in (Op.BIAS, Op.REDUCE):
        _check_between(planner, vjp, node.src[0])
        covers.append(node)
        node = node.positional[1]
    if node.op is not Op.VJP or node.src[0].op not in (Op.WEIGHTS, Op.AUX, Op.TOPK):
        said = "scores have a gradient through the weights of what was chosen, a loss or the choice itself"
        raise planner.refuse(vjp, f"{said}. {WAYS}")
    return node, covers


def _check_scores(planner: Planner, vjp: Node, forward: Selector) -> None:
    """Refuse weights that are shares of what is no product, and maxima of probabilities."""
    if forward.weights == "softmax_all" and (forward.softmax or forward.pool is not None or forward.bias is not None):
        said = "weights with renormalise = false have a gradient in a kernel where scores have no softmax, pool or bias"
        raise planner.refuse(vjp, f"{said}; the oracle has the others")
    if forward.group == "max" and forward.softmax:
        said = "a maximum of probabilities over the group has no gradient in a kernel"
        raise planner.refuse(vjp, f"{said}; use their mean or sum, or the maximum of scores")


def _check_between(planner: Planner, vjp: Node, between: Node) -> None:
    """Refuse what kernels do not go back through: a bias that does more than add."""
    if between.op is Op.BIAS:
        fn = between.expr("fn")
        slope = derivative(fn, var("score", "float")) if fn is not None else None
        if slope is None or slope.head != "const" or slope.value != 1:
            raise planner.refuse(vjp, "only a bias that adds to a score has a gradient in a kernel here")
