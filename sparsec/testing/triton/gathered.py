"""Runs the backward of one small gathered attention under Triton's interpreter, in fp32.

Usage: ``python -m sparsec.testing.triton.gathered FOLDER joint|chunk`` with TRITON_INTERPRET=1 in the
environment. Prints one JSON object: the largest error of each gradient, relative to its largest element.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import torch

from sparsec.backends.triton.build import arguments, launch, load
from sparsec.backends.triton.emit import emit
from sparsec.lower.registry import default, lower_kernel
from sparsec.plan.grad_specs import AnySpec
from sparsec.scalar.expr import var
from sparsec.testing.kernels.gathered import Sizes, attention, draw, grad_kv, grad_q, truth
from sparsec.testing.kernels.scratch import with_scratch
from sparsec.testing.triton.pace import keep_pace
from sparsec.tile.scalars import grid_of


def run(
    spec: AnySpec, tensors: dict[str, torch.Tensor], params: dict[str, int], folder: Path, **changes: object
) -> None:
    """All programs of a kernel under its default schedule for an H100, with ``changes``."""
    lowered = lower_kernel(spec, replace(default(spec, "triton:sm_90"), **changes))  # type: ignore[arg-type]
    every, dims = with_scratch(lowered, tensors, params)
    for step in lowered.steps:
        kernel = load(emit(step.program, step.schedule), step.program.name, folder)
        args = arguments(step.program, step.schedule, every, dims)
        launch(kernel, grid_of(step.program, dims), args, step.schedule)


def main(folder: str, per: str) -> None:
    """Queries and weights, then keys and values."""
    keep_pace()
    n = Sizes(9, 75, 64)
    s = attention(3, 1, per=per, scope="token", where=var("j") <= var("i"))
    x = draw(s, n, torch.float32)
    want = truth(s, x, n.offset, lambda i, j, h: j <= i)
    out = {f"d{name}": torch.full_like(x[name], math.nan) for name in "qkvw"}
    given = {name: want[name].float() for name in ("lse", "delta")}
    for spec in (grad_q(s), grad_kv(s)):
        run(spec, {**x, **given, **out}, n.params, Path(folder))
    asked = [name for name in out if per == "chunk" or name != "dw"]
    print(json.dumps({name: float((out[name] - want[name]).abs().max() / want[name].abs().max()) for name in asked}))


if __name__ == "__main__":
    main(*sys.argv[1:])
