"""What backward kernels of a softmax share: the rowdot of an output and its gradient, buffers of what is asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from sparsec.ir.node import Node
from sparsec.plan.adjoint import pull
from sparsec.plan.grad_specs import AnySpec, CombineGrad, GatheredGradQ, RowDot, TiledGradQ
from sparsec.plan.plan import Kernel
from sparsec.plan.planner import Planner
from sparsec.plan.pull import Pull
from sparsec.plan.specs import GatheredAttention, TiledAttention

Source = Callable[[Node, str], str]
"""Plans a cotangent in a dtype, and gives its buffer."""


def row_dot(planner: Planner, at: Pull, forward: TiledAttention | GatheredAttention, grad: str, source: Source) -> str:
    """The buffer of delta, planned once for all adjoints of one pull; with it a softmax's gradient of sinks."""
    if at in planner.deltas:
        return planner.deltas[at]
    lse_grad = source(at.lse_grad, "float32") if at.lse_grad is not None else None
    sink = next((v for v in planner.vjps if v["of"] == "sink" and pull(v) == at), None)
    delta = planner.temporary(at.owner, "delta", at.owner.shape[:3], "float32")
    if lse_grad is None and sink is None and _by_merge(planner, at, forward, grad, delta):
        planner.deltas[at] = delta
        return delta
    sink_grad = planner.temporary(sink, "tensor", sink.shape, "float32") if sink is not None else None
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
        sink=forward.sink if sink is not None else None,
        lse=forward.lse if sink is not None else None,
        sink_grad=sink_grad,
    )
    read = [forward.out, grad, *(b for b in (lse_grad, spec.sink, spec.lse) if b)]
    written = [delta, *([sink_grad] if sink_grad else [])]
    planner.follow(at.owner, spec, read, written, [sink] if sink is not None else [])
    if sink_grad is not None:  # made of buffers alone: scores, which the adjoint is of, are none of this kernel's
        own = planner.kernels[-1]
        results = (r if r[0] != sink_grad else (sink_grad, at.owner, "sink_grad") for r in own.results)
        planner.kernels[-1] = replace(own, results=tuple(results))
    planner.deltas[at] = delta
    return delta


def _by_merge(planner: Planner, at: Pull, forward: TiledAttention | GatheredAttention, grad: str, delta: str) -> bool:
    """Whether the kernel that makes the gradient, of a merge that reads the output, writes delta too."""
    for place, kernel in enumerate(planner.kernels):
        spec = kernel.spec
        if not isinstance(spec, CombineGrad) or grad not in spec.branch_grads or spec.forward.fn == "sum":
            continue
        number = spec.branch_grads.index(grad)
        if spec.forward.branches[number] != forward.out:
            return False
        deltas = list(spec.deltas or (None,) * len(spec.branch_grads))
        deltas[number] = delta
        planner.kernels[place] = replace(
            kernel, spec=replace(spec, deltas=tuple(deltas)), writes=(*kernel.writes, delta),
            results=(*kernel.results, (delta, at.owner, "delta")),
        )  # fmt: skip
        return True
    return False


def folded(kernels: Sequence[Kernel]) -> list[Kernel]:
    """Kernels whose plain rowdots are left to the gradient of the queries, which has their rows at hand."""
    found = list(kernels)
    for kernel in kernels:
        dot = kernel.spec
        if not isinstance(dot, RowDot) or dot.lse_grad is not None or dot.sink_grad is not None:
            continue
        taker = next((k for k in found if _has_rows(k.spec, dot)), None)
        if taker is not None:
            assert isinstance(taker.spec, GatheredGradQ | TiledGradQ)
            found[found.index(taker)] = _with_dots(taker, taker.spec, kernel)
            found.remove(kernel)
    return found


def _has_rows(spec: AnySpec, dot: RowDot) -> bool:
    """Whether a kernel makes the gradient of the queries whose rowdots ``dot`` finds."""
    return isinstance(spec, GatheredGradQ | TiledGradQ) and spec.delta == dot.delta and spec.grad_q is not None


def _with_dots(taker: Kernel, spec: GatheredGradQ | TiledGradQ, kernel: Kernel) -> Kernel:
    """A kernel that does what another did too."""
    made = set(kernel.writes)
    return replace(
        taker,
        spec=replace(spec, dots=True),
        reads=tuple(dict.fromkeys(n for n in (*taker.reads, *kernel.reads) if n not in made)),
        writes=(*taker.writes, *kernel.writes),
        sources=tuple(dict.fromkeys(s for s in (*taker.sources, *kernel.sources) if s[0] not in made)),
        results=(*taker.results, *kernel.results),
    )


def asked(planner: Planner, vjp: Node, fields: Collection[str], dtype: str) -> tuple[dict[str, str], str]:
    """Buffers for the adjoints that one kernel computes with ``vjp``, by ``of``, and the dtype of all but weights.

    Weights' are fp32; the others are so where one of them goes on into other kernels.
    """
    at, found = pull(vjp), {}
    for v in planner.vjps:
        if v.src[0] is vjp.src[0] and v["of"] in fields and pull(v) == at:
            kind = "float32" if v["of"] == "weights" else planner.precision(v, dtype)
            found[str(v["of"])] = planner.temporary(v, "tensor", v.shape, kind)
    own = [name for of, name in found.items() if of != "weights"]
    dtypes = {planner.buffers[name].dtype for name in own} or {dtype}
    common = "float32" if "float32" in dtypes else dtypes.pop()
    planner.retype(own, common)
    return found, common
