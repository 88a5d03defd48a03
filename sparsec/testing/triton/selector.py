"""Runs the backward of one small selector and of a summary under Triton's interpreter, in fp32.

Usage: ``python -m sparsec.testing.triton.selector FOLDER`` with TRITON_INTERPRET=1 in the environment. Prints
one JSON object: the largest error of each gradient, relative to its largest element.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch

from sparsec.oracle.summary import summarise
from sparsec.plan.grad_specs import SummariseGrad
from sparsec.plan.specs import Summarise
from sparsec.testing.kernels.selector import OUTPUTS, Sizes, draw, grads, selector, truth
from sparsec.testing.triton.gathered import run
from sparsec.testing.triton.pace import keep_pace


def of_selector(folder: Path) -> dict[str, float]:
    """Chosen scores, queries and keys."""
    s, n = selector(3, 1, dim=48), Sizes(9, 7, 1)
    x = draw(s, n, exact=False)
    want = truth(s, x)
    for spec in grads(s):
        run(spec, x, n.params, folder)
    return {name: float((x[name] - want[name]).abs().max() / want[name].abs().max()) for name in OUTPUTS}


def of_summary(folder: Path) -> dict[str, float]:
    """Tokens under windows that overlap."""
    x = torch.randn(1, 37, 1, 16, requires_grad=True)
    g = torch.randn(1, 3, 1, 16)
    (want,) = torch.autograd.grad(summarise(x, 24, 16, "mean"), x, g)
    forward = Summarise("s", "x", "out", 1, 16, 24, 16, "N", "mean", "float32", "float32")
    out = torch.full_like(want, math.nan)
    params = {"B": 1, "TQ": 1, "TK": 37, "q_offset": 0, "N": 3}
    run(SummariseGrad("pull", forward, "g", "dx", "float32", "float32"), {"g": g, "dx": out}, params, folder)
    return {"dx": float((out - want).abs().max() / want.abs().max())}


def main(folder: str) -> None:
    """Both."""
    keep_pace()
    print(json.dumps(of_selector(Path(folder)) | of_summary(Path(folder))))


if __name__ == "__main__":
    main(*sys.argv[1:])
