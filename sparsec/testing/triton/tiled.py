"""Backward cases under Triton's interpreter: ``python -m sparsec.testing.triton.tiled FOLDER``, TRITON_INTERPRET=1.

Prints one JSON object: the largest error of each gradient of each case, relative to its largest element.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sparsec.lower.lowered import Lowered
from sparsec.plan.specs import Capture, Piece, TiledAttention
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import element, var
from sparsec.testing.kernels.tiled import TiledCase, backward, truth
from sparsec.testing.triton.pace import keep_pace
from sparsec.tile.scalars import grid_of
from sparsec.tile.schedule import Schedule

ROW, KEY = var("i"), var("j")
SINKS = (KEY <= ROW) & ((ROW - KEY < 20) | (KEY < 5))
BIAS = var("score", "float") - element("c", var("h")) * (ROW - KEY)
PARAMS = {"B": 2, "TQ": 37, "TK": 41, "q_offset": 4, "M": 21}


def cases() -> dict[str, TiledCase]:
    """Sinks beside slots; a head of two spans under a bias with a captured slope."""
    tokens, slots = Piece("k", "v", "TK", SINKS), Piece("mk", "mv", "M", batched=False, size=21)
    first = TiledAttention("attend", "q", (tokens, slots), "out", "lse", 4, 2, 32, 16, 0.3, "float32", sink="sinks")
    biased = Piece("k", "v", "TK", SINKS, BIAS, (Capture("c", "float32", 1),))
    second = TiledAttention("attend", "q", (biased,), "out", "lse", 2, 1, 48, 32, 0.2, "float32", None, "sinks")
    return {
        "sinks and slots": TiledCase(first, PARAMS, lse_grad=True),
        "slopes": TiledCase(second, PARAMS, {"c": torch.tensor([0.1, 0.03])}),
    }


def errors(case: TiledCase, found: Mapping[str, Tensor]) -> dict[str, float]:
    """By gradient; infinite where one is not finite."""
    want = {name: t for name, t in truth(case, case.draw()).items() if name.startswith("grad_")}
    worst = {name: (found[name].double() - t).abs().max() / t.abs().max() for name, t in want.items()}
    return {name: float(error.nan_to_num(torch.inf)) for name, error in worst.items()}


def main(folder: str) -> None:
    """Run all cases."""
    keep_pace()
    from sparsec.backends.triton.build import arguments, launch, load
    from sparsec.backends.triton.emit import emit

    def run(lowered: Lowered, x: dict[str, Tensor], params: Mapping[str, int]) -> None:
        for s in lowered.scratch:
            shape = [int(evaluate(extent, params)) for extent in s.shape]
            x[s.name] = torch.full(shape, torch.nan, dtype=getattr(torch, s.dtype))
        for step in lowered.steps:
            kernel = load(emit(step.program, step.schedule), step.program.name, Path(folder))
            args = arguments(step.program, step.schedule, x, params)
            launch(kernel, grid_of(step.program, params), args, step.schedule)

    schedule = Schedule(rows=16, block=32, phases="split", splits=2)
    made = {name: errors(case, backward(case, schedule, run)) for name, case in cases().items()}
    print(json.dumps(made))


if __name__ == "__main__":
    main(*sys.argv[1:])
