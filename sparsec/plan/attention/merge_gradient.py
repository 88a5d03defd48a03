"""Adjoints of merges that have a kernel of their own: branches, gates and log-sum-exps in one kernel."""

from __future__ import annotations

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.plan.attention.merge import branches_of
from sparsec.plan.grad_specs import CombineGrad
from sparsec.plan.planner import Planner
from sparsec.plan.pull import own_pull
from sparsec.plan.row_dot import Source
from sparsec.plan.specs import Combine


def merge_gradient(planner: Planner, vjp: Node, source: Source) -> None:
    """Plan the kernel that computes all asked adjoints of one merge; each gets its buffer."""
    merge, at = vjp.src[0], own_pull(vjp)
    forward = planner.specs.get(merge)
    if not isinstance(forward, Combine):
        raise planner.refuse(vjp, "this merge has no kernel of its own, so that its branches have no gradient alone")
    grad = source(at.grad, planner.sizes.dtype)
    lse_grad = source(at.lse_grad, "float32") if at.lse_grad is not None else None
    asked = {str(v["of"]): v for v in planner.vjps if v.src[0] is merge and own_pull(v) == at}
    count, dtype = len(branches_of(merge)), planner.sizes.dtype
    outs = tuple(_buffer(planner, asked.get(f"x{k}"), dtype) for k in range(count))
    gate_dtypes = forward.gate_dtypes or (forward.dtype,) * len(forward.gates)
    gates = tuple(_gate(planner, asked.get(f"x{count + k}"), kind) for k, kind in enumerate(gate_dtypes))
    lses = tuple(_buffer(planner, asked.get(f"lse{k}"), "float32") for k in range(len(forward.lses)))
    name = "_".join(b for b in (*outs, *gates, *lses) if b)
    spec = CombineGrad(
        name=f"grad_{name}",
        forward=forward,
        grad=grad,
        lse_grad=lse_grad,
        branch_grads=outs,
        gate_grads=gates,
        lse_grads=lses,
        grad_dtype=planner.buffers[grad].dtype,
        branch_grad_dtype=dtype,
        out=forward.out if forward.fn == "lse" else None,
        lse=forward.lse if forward.fn == "lse" else None,
    )
    read = [*forward.branches, *forward.gates, *forward.lses, grad, *(b for b in (lse_grad, spec.out, spec.lse) if b)]
    planner.follow(merge, spec, read, [b for b in (*outs, *gates, *lses) if b], [vjp])


def gate_gradient(planner: Planner, vjp: Node, source: Source) -> None:
    """The adjoint of a gate's function comes out of the kernel of the merge that applies it."""
    inner = vjp.positional[1]
    if inner.op is not Op.VJP or inner.src[0].op is not Op.MERGE or inner["of"] not in _gates_of(inner.src[0]):
        raise planner.refuse(vjp, "only gates of a merge go through a function; compute others outside")
    merge_gradient(planner, inner, source)


def _gates_of(merge: Node) -> set[str]:
    count = len(branches_of(merge))
    return {f"x{k}" for k in range(count, len(merge.src))}


def _buffer(planner: Planner, vjp: Node | None, dtype: str) -> str | None:
    return None if vjp is None else planner.temporary(vjp, "tensor", vjp.shape, dtype)


def _gate(planner: Planner, vjp: Node | None, dtype: str) -> str | None:
    """A gate's gradient belongs to the adjoint of its function, where the merge applies that."""
    if vjp is None:
        return None
    outer = next((v for v in planner.vjps if v.src[0] in planner.absorbed and v.positional[1] is vjp), vjp)
    return planner.temporary(outer, "tensor", outer.shape, dtype)
