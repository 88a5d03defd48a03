"""Gradients of scores that come from a training signal, or straight through a choice, on to what scored."""

from __future__ import annotations

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.scores import unit_size
from sparsec.plan.adjoint import pull
from sparsec.plan.planner import Planner
from sparsec.plan.row_dot import Source
from sparsec.plan.selection.signal import dense_reads, index_reads, reads, scorer, signal
from sparsec.plan.selection.signal_specs import DenseGradKeys, Divergence, IndexGradKeys, IndexGradQ, ListSum
from sparsec.plan.specs import GatheredAttention


def index_gradient(planner: Planner, vjp: Node, below: Node, covers: list[Node], dtype: str, source: Source) -> None:
    """Plan the gradient of a score's queries, keys or head weights; ``below`` is the adjoint that it comes from."""
    primal, scores = below.src[0], below.src[0].src[0]
    if primal.op is Op.AUX and len(primal.positional) == 1:
        dense_gradient(planner, vjp, below, covers, dtype, source)
        return
    chosen = primal.src[1] if primal.op is Op.AUX else primal
    if primal.op is Op.AUX:
        signal(planner, primal)
    index = scorer(planner, vjp, scores, chosen)
    columns = 1 if unit_size(scores) != 1 or primal.op is Op.TOPK else chosen.integer("size")
    if below not in planner.score_grads:
        asked = {str(v["of"]): v for v in planner.vjps if v.src[0] is vjp.src[0] and v["of"] != "keys"}
        outs = {of: planner.temporary(v, "tensor", v.shape, planner.precision(v, dtype)) for of, v in asked.items()}
        dtypes = {planner.buffers[name].dtype for name in outs.values()} or {dtype}
        common = "float32" if "float32" in dtypes else dtypes.pop()
        planner.retype(outs.values(), common)
        if primal.op is Op.AUX:
            lists = (*chosen.shape[:3], chosen.shape[3] * columns)
            scores_grad = planner.temporary(below, "chosen", lists, "float32")
            loss = planner.specs[primal]
            assert isinstance(loss, Divergence)
            grad = source(below.positional[1], "float32")
            assert loss.mass is not None
            kept = [loss.scores] if loss.scores else []
            more, written = [*kept, loss.mass, loss.total, loss.lse, grad], [scores_grad]
        else:
            scores_grad, loss, grad = source(below.positional[1], "float32"), None, None
            more, written = [scores_grad], []
        planner.score_grads[below] = scores_grad
        if loss is not None or outs:
            name = f"grad_{'_'.join(outs.values()) or scores_grad}"
            spec = IndexGradQ(
                name, index, columns, scores_grad, loss, grad, outs.get("q"), outs.get("head_weights"), common
            )
            mine = [*covers, below, *asked.values()]
            planner.follow(chosen, spec, [*index_reads(index), *more], [*written, *outs.values()], mine)
    if vjp["of"] == "keys":
        out_dtype = planner.precision(vjp, dtype)
        out = planner.temporary(vjp, "tensor", vjp.shape, out_dtype)
        grads = planner.score_grads[below]
        keys = IndexGradKeys(f"grad_{out}", index, columns, grads, out, out_dtype)
        planner.follow(chosen, keys, [*index_reads(index), grads], [out], [vjp])


def ranked_gradient(planner: Planner, below: Node, source: Source) -> None:
    """Plan the gradients of the scores that a choice kept for its loss, by list."""
    primal, chosen = below.src[0], below.src[0].src[1]
    signal(planner, primal)
    loss = planner.specs[primal]
    assert isinstance(loss, Divergence) and loss.scores is not None and loss.mass is not None
    out, grad = planner.temporary(below, "chosen", chosen.shape, "float32"), source(below.positional[1], "float32")
    spec = IndexGradQ(f"grad_{out}", loss.index, 1, out, loss, grad, None, None, "float32")
    planner.follow(chosen, spec, [loss.scores, loss.mass, loss.total, loss.lse, grad], [out], [below])
    planner.score_grads[below] = out


def dense_gradient(planner: Planner, vjp: Node, below: Node, covers: list[Node], dtype: str, source: Source) -> None:
    """The same for a loss over all keys: what it compares is computed again."""
    primal = below.src[0]
    signal(planner, primal)
    loss = planner.specs[primal]
    assert isinstance(loss, Divergence)
    grad, out_dtype = source(below.positional[1], "float32"), planner.precision(vjp, dtype)
    read = [*dense_reads(loss), loss.total, loss.lse, grad]
    if vjp["of"] == "keys":
        out = planner.temporary(vjp, "tensor", vjp.shape, out_dtype)
        keys = DenseGradKeys(f"grad_{out}", loss.index, loss, grad, out, out_dtype)
        planner.follow(primal, keys, read, [out], [*covers, below, vjp])
        return
    asked = {str(v["of"]): v for v in planner.vjps if v.src[0] is vjp.src[0] and v["of"] != "keys"}
    outs = {of: planner.temporary(v, "tensor", v.shape, out_dtype) for of, v in asked.items()}
    name = f"grad_{'_'.join(outs.values())}"
    spec = IndexGradQ(name, loss.index, 1, None, loss, grad, outs.get("q"), outs.get("head_weights"), out_dtype)
    planner.follow(primal, spec, read, list(outs.values()), [*covers, below, *asked.values()])


def list_gradient(planner: Planner, vjp: Node, source: Source) -> None:
    """Plan the gradient of a factor of 1 on every chosen unit of an attend."""
    at = pull(vjp)
    forward = planner.specs[at.owner]
    assert isinstance(forward, GatheredAttention)
    grad = source(at.grad, planner.sizes.dtype)
    lse_grad = source(at.lse_grad, "float32") if at.lse_grad is not None else None
    out = planner.temporary(vjp, "tensor", vjp.shape, "float32")
    columns = forward.chunk if forward.chunk == 1 else 1
    spec = ListSum(f"grad_{out}", forward, "slope", columns, out, grad, lse_grad, planner.buffers[grad].dtype)
    read = [*reads(forward), forward.v, grad, *([lse_grad] if lse_grad else [])]
    planner.follow(at.owner, spec, read, [out], [vjp])
