"""Adjoints of gathered attention: queries with chunk weights in one kernel, keys with values in another."""

from __future__ import annotations

from sparsec.ir.node import Node
from sparsec.plan.adjoint import pull
from sparsec.plan.attention.capture_specs import GatheredGradCapture
from sparsec.plan.attention.sink_specs import ChunkSinkGrad
from sparsec.plan.grad_specs import GatheredGradKV, GatheredGradQ
from sparsec.plan.planner import Planner
from sparsec.plan.row_dot import Source, asked, row_dot
from sparsec.plan.specs import GatheredAttention


def gathered_gradient(planner: Planner, vjp: Node, result: Node, dtype: str, source: Source) -> None:
    """Plan the kernel that computes one adjoint of an attend over chosen chunks."""
    at, of = pull(vjp), vjp["of"]
    forward = planner.specs[at.owner]
    assert isinstance(forward, GatheredAttention)
    if of == "sink" and forward.per == "joint":
        row_dot(planner, at, forward, source(at.grad, planner.sizes.dtype), source)
        return
    if of == "sink":
        _chunk_sinks(planner, vjp, forward, source(at.grad, planner.sizes.dtype))
        return
    if of not in ("q", "k", "v", "weights", "capture"):
        raise planner.refuse(vjp, f"no kernel computes the gradient of {of} through lists of chunks yet")
    grad = source(at.grad, planner.sizes.dtype)
    delta = row_dot(planner, at, forward, grad, source) if forward.per == "joint" else None
    if of == "capture":
        _capture(planner, vjp, forward, grad, delta)
        return
    fields = ("q", "weights") if of in ("q", "weights") else ("k", "v")
    found, out_dtype = asked(planner, vjp, fields, dtype)
    common = (f"grad_{'_'.join(found.values())}", forward, grad, delta)
    kinds = planner.buffers[grad].dtype, out_dtype
    spec: GatheredGradQ | GatheredGradKV
    if "q" in fields:
        spec = GatheredGradQ(*common, found.get("q"), found.get("weights"), *kinds)
    else:
        spec = GatheredGradKV(*common, found.get("k"), found.get("v"), *kinds)
    planner.follow(at.owner, spec, _reads(forward, grad, delta), list(found.values()), [vjp])


def _reads(forward: GatheredAttention, grad: str, delta: str | None) -> list[str]:
    """What a backward kernel reads: the forward's inputs and lists, its log-sum-exp, grad and delta."""
    read = [forward.q, forward.k, forward.v, forward.indices, *(c.name for c in forward.captures), grad]
    more = (forward.weights, forward.counts, forward.lse if forward.per == "joint" else None, delta)
    read += [b for b in more if b is not None]
    return read + ([forward.sink] if forward.sink not in (None, "zero") and forward.sink else [])


def _capture(planner: Planner, vjp: Node, forward: GatheredAttention, grad: str, delta: str | None) -> None:
    """A tensor that the bias reads."""
    out, name = planner.temporary(vjp, "tensor", vjp.shape, "float32"), str(vjp["capture"])
    shape = next(c for c in forward.captures if c.name == name).shape
    dtype = planner.buffers[grad].dtype
    spec = GatheredGradCapture(f"grad_{out}", forward, name, shape, grad, delta, out, dtype)
    planner.follow(pull(vjp).owner, spec, _reads(forward, grad, delta), [out], [vjp])


def _chunk_sinks(planner: Planner, vjp: Node, forward: GatheredAttention, grad: str) -> None:
    """Sinks that join the softmax inside each chunk."""
    out = planner.temporary(vjp, "tensor", vjp.shape, "float32")
    spec = ChunkSinkGrad(f"grad_{out}", forward, grad, out, planner.buffers[grad].dtype)
    assert forward.weights is not None and forward.sink is not None
    read = [forward.q, forward.k, forward.v, forward.indices, forward.weights, forward.sink, grad]
    read += [*(c.name for c in forward.captures), *([forward.counts] if forward.counts else [])]
    planner.follow(pull(vjp).owner, spec, read, [out], [vjp])
