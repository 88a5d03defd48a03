"""Adjoints of tiled attention: rowdot first, then queries, keys and values, captured tensors, sinks."""

from __future__ import annotations

from dataclasses import replace

from sparsec.ir.node import Node
from sparsec.plan.adjoint import branches, pull
from sparsec.plan.grad_specs import TiledGradCapture, TiledGradKV, TiledGradQ
from sparsec.plan.planner import Planner
from sparsec.plan.pull import Pull
from sparsec.plan.row_dot import Source, asked, row_dot
from sparsec.plan.specs import BlockList, TiledAttention
from sparsec.scalar.expr import constant


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


def reads(forward: TiledAttention, grad: str, delta: str) -> list[str]:
    """What a backward kernel reads beside its lists: the forward's inputs, its log-sum-exp, grad and delta."""
    assert forward.lse is not None
    pieces = [b for p in forward.pieces for b in (p.k, p.v, *(c.name for c in p.captures))]
    listed = [b for p in forward.pieces if p.listed for b in p.listed.buffers]
    return [forward.q, *pieces, *listed, forward.lse, grad, delta]


def _keys_values(
    planner: Planner, vjp: Node, at: Pull, forward: TiledAttention, given: tuple[str, str], dtype: str
) -> None:
    """One kernel for the keys and the values of a piece, as far as they are asked for."""
    grad, delta = given
    found, out_dtype = asked(planner, vjp, ("k", "v"), dtype)
    number = branches(at.owner).index(vjp.src[0])
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
    more = listed.buffers if listed else ()
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
    whole = planner.fresh(f"{spec.whole}_of_keys", [*lead, tiles[0]], "int32") if spec.whole else None
    found = replace(spec, name=f"{spec.name}_of_keys", ids=ids, counts=counts, whole=whole, transposed=True)
    read = [*(c.name for c in spec.captures), *(x for x in (spec.given, spec.given_counts) if x)]
    planner.follow(at.owner, found, read, list(found.buffers), [])
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
