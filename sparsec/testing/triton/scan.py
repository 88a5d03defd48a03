"""Runs small chunked scans under Triton's interpreter, in fp32: ``python -m sparsec.testing.triton.scan FOLDER``.

Needs TRITON_INTERPRET=1 in the environment. Prints one JSON object: the error of each output against the truth.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from torch import Tensor

from sparsec.backends.triton.build import arguments, launch, load
from sparsec.backends.triton.emit import emit
from sparsec.lower.lowered import Lowered
from sparsec.lower.scan.chunk import forward as chunk
from sparsec.testing.kernels.scan import Setting, truth
from sparsec.testing.kernels.scratch import with_scratch
from sparsec.testing.triton.pace import keep_pace
from sparsec.tile.scalars import grid_of
from sparsec.tile.schedule import Schedule

SETTINGS = {
    "fading": Setting("additive", "scalar", length=40, cols=24, initial=True, final=True),
    "gated delta": Setting("delta", "scalar", True, length=40, cols=24, initial=True, final=True),
}
SCHEDULE = Schedule(order="chunk", rows=16, value_block=16, splits=2)


def launched(lowered: Lowered, tensors: dict[str, Tensor], params: dict[str, int], folder: Path) -> dict[str, Tensor]:
    """All programs of a kernel, one after another; every buffer."""
    every, dims = with_scratch(lowered, tensors, params)
    for step in lowered.steps:
        kernel = load(emit(step.program, step.schedule), step.program.name, folder)
        args = arguments(step.program, step.schedule, every, dims)
        launch(kernel, grid_of(step.program, dims), args, step.schedule)
    return every


def main(folder: str) -> None:
    """Every setting."""
    keep_pace()
    errors: dict[str, float] = {}
    for name, s in SETTINGS.items():
        x, out = s.draw(), s.outputs(s.draw()["q"].dtype)
        every, want = launched(chunk.lower(s.scan(), SCHEDULE), {**x, **out}, s.params, Path(folder)), truth(s, x)
        errors |= {f"{name} {n}": float((every[n] - want[n]).abs().max() / want[n].abs().max()) for n in out}
    print(json.dumps(errors))


if __name__ == "__main__":
    main(*sys.argv[1:])
