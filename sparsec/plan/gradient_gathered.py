"""Adjoints of gathered attention: queries with chunk weights in one kernel, keys with values in another."""

from __future__ import annotations

from sparsec.ir.node import Node
from sparsec.plan.adjoint import pull
from sparsec.plan.grad_specs import GatheredGradKV, GatheredGradQ, RowDot
from sparsec.plan.gradient_tiled import Source
from sparsec.plan.planner import Planner
from sparsec.plan.pull import Pull
from sparsec.plan.specs import GatheredAttention


def gathered_gradient(planner: Planner, vjp: Node, result: Node, dtype: str, source: Source) -> None:
    """Plan the kernel that computes one adjoint of an attend over chosen chunks."""
    at, of = pull(vjp), vjp["of"]
    forward = planner.specs[at.owner]
    assert isinstance(forward, GatheredAttention)
    if of not in ("q", "k", "v", "weights"):
        raise planner.refuse(vjp, f"no kernel computes the gradient of {of} through lists of chunks yet")
    grad = source(at.grad, planner.sizes.dtype)
    delta = _row_dot(planner, at, forward, grad, source) if forward.per == "joint" else None
    fields = ("q", "weights") if of in ("q", "weights") else ("k", "v")
    found = {
        str(v["of"]): planner.temporary(v, "tensor", v.shape, _dtype(planner, v, dtype))
        for v in planner.vjps
        if v.src[0] is vjp.src[0] and v["of"] in fields and pull(v) == at
    }
    label = "_".join(found.values())
    common = (f"grad_{label}", forward, grad, delta)
    dtypes = {planner.buffers[b].dtype for of, b in found.items() if of != "weights"} or {dtype}
    out_dtype = "float32" if "float32" in dtypes else dtypes.pop()
    planner.retype([b for of, b in found.items() if of != "weights"], out_dtype)
    kinds = planner.buffers[grad].dtype, out_dtype
    spec: GatheredGradQ | GatheredGradKV
    if "q" in fields:
        spec = GatheredGradQ(*common, found.get("q"), found.get("weights"), *kinds)
    else:
        spec = GatheredGradKV(*common, found.get("k"), found.get("v"), *kinds)
    read = [forward.q, forward.k, forward.v, forward.indices, *(c.name for c in forward.captures), grad]
    more = (forward.weights, forward.counts, forward.lse if forward.per == "joint" else None, delta)
    read += [b for b in more if b is not None]
    read += [forward.sink] if forward.sink not in (None, "zero") and forward.sink else []
    planner.follow(at.owner, spec, read, list(found.values()), [vjp])


def _dtype(planner: Planner, vjp: Node, dtype: str) -> str:
    return "float32" if vjp["of"] == "weights" else planner.precision(vjp, dtype)


def _row_dot(planner: Planner, at: Pull, forward: GatheredAttention, grad: str, source: Source) -> str:
    """The buffer of delta, planned once for all adjoints of one pull."""
    if at in planner.deltas:
        return planner.deltas[at]
    lse_grad = source(at.lse_grad, "float32") if at.lse_grad is not None else None
    delta = planner.temporary(at.owner, "delta", at.owner.shape[:3], "float32")
    spec = RowDot(
        name=f"rowdot_{delta}",
        out=forward.out,
        grad=grad,
        delta=delta,
        heads=forward.heads,
        value_dim=forward.value_dim,
        out_dtype=forward.out_dtype or forward.dtype,
        grad_dtype=planner.buffers[grad].dtype,
        lse_grad=lse_grad,
    )
    planner.follow(at.owner, spec, [forward.out, grad, *([lse_grad] if lse_grad else [])], [delta], [])
    planner.deltas[at] = delta
    return delta
