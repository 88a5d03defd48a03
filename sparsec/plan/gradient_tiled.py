"""Adjoints of tiled attention: rowdot first, then queries, keys and values, captured tensors, sinks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sparsec.ir.node import Node
from sparsec.plan.adjoint import branches, pull
from sparsec.plan.grad_specs import RowDot, TiledGradCapture, TiledGradKV, TiledGradQ
from sparsec.plan.planner import Planner
from sparsec.plan.pull import Pull
from sparsec.plan.specs import BlockList, TiledAttention
from sparsec.scalar.expr import constant

Source = Callable[[Node, str], str]
"""Plans a cotangent in a dtype, and gives its buffer."""


def tiled_gradient(planner: Planner, vjp: Node, result: Node, dtype: str, source: Source) -> None:
    """Plan the kernel that computes one adjoint of a dense attend; its buffer belongs to ``result``."""
    at = pull(vjp)
    forward = planner.specs[at.owner]
    assert isinstance(forward, TiledAttention) and forward.lse is not None
    grad = source(at.grad, planner.sizes.dtype)
    delta = row_dot(planner, at, forward, grad, source)
    of = vjp["of"]
    if of == "sink":
        return  # the rowdot kernel has made it
    if of == "q":
        out = planner.temporary(result, "tensor", result.shape, dtype)
        spec = TiledGradQ(f"grad_{out}", forward, grad, delta, out, planner.buffers[grad].dtype, dtype)
        planner.follow(at.owner, spec, reads(forward, grad, delta), [out], [result])
    elif of in ("k", "v"):
        _keys_values(planner, vjp, at, forward, (grad, delta), dtype)
    elif of == "capture":
        _capture(planner, vjp, at, forward, (grad, delta), result)
    else:
        raise planner.refuse(vjp, f"no kernel computes the gradient of an attend's {of} yet")


def row_dot(planner: Planner, at: Pull, forward: TiledAttention, grad: str, source: Source) -> str:
    """The buffer of delta, planned once for all adjoints of one pull; with it the gradient of sink logits."""
    if at in planner.deltas:
        return planner.deltas[at]
    lse_grad = source(at.lse_grad, "float32") if at.lse_grad is not None else None
    sink = next((v for v in planner.vjps if v["of"] == "sink" and pull(v) == at), None)
    delta = planner.temporary(at.owner, "delta", at.owner.shape[:3], "float32")
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
    planner.deltas[at] = delta
    return delta


def reads(forward: TiledAttention, grad: str, delta: str) -> list[str]:
    """What a backward kernel reads beside its lists: the forward's inputs, its log-sum-exp, grad and delta."""
    assert forward.lse is not None
    pieces = [b for p in forward.pieces for b in (p.k, p.v, *(c.name for c in p.captures))]
    listed = [b for p in forward.pieces if p.listed for b in (p.listed.ids, p.listed.counts)]
    return [forward.q, *pieces, *listed, forward.lse, grad, delta]


def _keys_values(
    planner: Planner, vjp: Node, at: Pull, forward: TiledAttention, given: tuple[str, str], dtype: str
) -> None:
    """One kernel for the keys and the values of a piece, as far as they are asked for."""
    attend, (grad, delta) = vjp.src[0], given
    found = {
        str(v["of"]): planner.temporary(v, "tensor", v.shape, planner.precision(v, dtype))
        for v in planner.vjps
        if v.src[0] is attend and v["of"] in ("k", "v") and pull(v) == at
    }
    number = branches(at.owner).index(attend)
    dtypes = {planner.buffers[b].dtype for b in found.values()}
    out_dtype = "float32" if "float32" in dtypes else dtypes.pop()
    planner.retype(found.values(), out_dtype)
    listed = _transposed(planner, vjp, at, forward, number)
    label = found.get("k") or found["v"]
    spec = TiledGradKV(
        name=f"grad_{label}",
        forward=forward,
        piece=number,
        grad=grad,
        delta=delta,
        grad_k=found.get("k"),
        grad_v=found.get("v"),
        grad_dtype=planner.buffers[grad].dtype,
        out_dtype=out_dtype,
        listed=listed,
    )
    more = [listed.ids, listed.counts] if listed else []
    planner.follow(at.owner, spec, [*reads(forward, grad, delta), *more], list(found.values()), [vjp])


def _transposed(planner: Planner, vjp: Node, at: Pull, forward: TiledAttention, number: int) -> BlockList | None:
    """The block list of a piece read from its keys' side, in a kernel of its own."""
    spec = forward.pieces[number].listed
    if spec is None:
        return None
    q, memory = vjp.src[0].src[:2]
    tiles = [(memory.shape[1] + (spec.block_k - 1)) // spec.block_k, (q.shape[1] + (spec.block_q - 1)) // spec.block_q]
    lead = [q.shape[0] if spec.per_batch else constant(1), constant(spec.heads)]
    ids = planner.fresh(f"{spec.ids}_of_keys", [*lead, *tiles], "int32")
    counts = planner.fresh(f"{spec.counts}_of_keys", [*lead, tiles[0]], "int32")
    found = replace(spec, name=f"{spec.name}_of_keys", ids=ids, counts=counts, transposed=True)
    planner.follow(at.owner, found, [c.name for c in spec.captures], [ids, counts], [])
    return found


def _capture(
    planner: Planner, vjp: Node, at: Pull, forward: TiledAttention, given: tuple[str, str], result: Node
) -> None:
    grad, delta = given
    out = planner.temporary(result, "tensor", result.shape, "float32")
    dtype, name = planner.buffers[grad].dtype, str(vjp["capture"])
    capture = next(c for piece in forward.pieces for c in piece.captures if c.name == name)
    spec = TiledGradCapture(f"grad_{out}", forward, name, capture.shape, grad, delta, out, dtype)
    planner.follow(at.owner, spec, reads(forward, grad, delta), [out], [result])
