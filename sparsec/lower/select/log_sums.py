"""The first half of a selector in two kernels: base-two log-sum-exps of each head's scores over what it may see."""

from __future__ import annotations

from dataclasses import replace

from sparsec.lower.lowered import Scratch
from sparsec.lower.scalars import ceil_div
from sparsec.lower.select.candidates import log_sum
from sparsec.lower.select.frame import alone, frame, params
from sparsec.plan.specs import Selector
from sparsec.scalar.expr import constant, var
from sparsec.tile import build as tile
from sparsec.tile.language import Program, Tensor
from sparsec.tile.schedule import Schedule


def tensor(spec: Selector) -> Tensor:
    """The sums: fp32 ``[B, TQ, H]``."""
    return Tensor(f"{spec.name}_log_sums", "float32", ("B", "TQ", spec.heads))


def scratch(spec: Selector) -> Scratch:
    """The buffer between the two kernels."""
    return Scratch(tensor(spec).name, (var("B"), var("TQ"), constant(spec.heads)), "float32")


def schedule(spec: Selector, found: Schedule) -> Schedule:
    """How the sums are worked out beside a choice under ``found``: wide tiles, since queries stay in registers."""
    if not found.split_dims:
        return replace(found, phases="split")
    rows, stages = (64, 1) if found.descriptors else (128, 2)
    return replace(found, order="one_pass", rows=rows, block=64, warps=4, stages=stages, phases="split")


def lower(spec: Selector, schedule: Schedule) -> Program:
    """q ``[B,TQ,H,D]``, keys ``[B,N,HKV,D]`` -> sums ``[B,TQ,H]``, a program per (tile of tokens, head, batch)."""
    out = tensor(spec)
    with tile.Builder() as builder:
        f = frame(builder, alone(spec), schedule)
        value = log_sum(f, tile.const(0))
        tile.store(out, f.batch, f.row, f.head, value=value, bounds={1: tile.param("TQ")})
        tensors = [f.tensors[spec.q], f.tensors[spec.keys], out]
        grid = (ceil_div(tile.param("TQ"), schedule.rows), tile.const(spec.heads), tile.param("B"))
        return builder.program(out.name, tensors, params(spec), grid)
