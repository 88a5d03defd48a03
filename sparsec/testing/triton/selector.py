"""Runs the backward of a small selector and of a summary, and a choice by rounds, under Triton's interpreter, in fp32.

Usage: ``python -m sparsec.testing.triton.selector FOLDER`` with TRITON_INTERPRET=1 in the environment. Prints
one JSON object: the largest error of each gradient, relative to its largest element, and how many ids differ.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import torch

from sparsec.oracle.summary import summarise
from sparsec.plan.grad_specs import SummariseGrad
from sparsec.plan.selection.parents import Parents
from sparsec.plan.specs import Selector, Summarise
from sparsec.scalar.expr import var
from sparsec.testing.kernels import pooled
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


def of_pooled(folder: Path) -> dict[str, float]:
    """Queries and keys behind a softmax and an overlap pool."""
    s, n = pooled.selector(2, 1, dim=16), pooled.Sizes(9, 11, 1)
    x = pooled.draw(s, n, exact=False)
    want = pooled.truth(s, n, x)
    run(pooled.grad(s), x, n.params, folder)
    far = {name: (x[name] - want[name]).abs().max() / want[name].abs().max() for name in pooled.OUTPUTS}
    return {f"pooled {name}": float(error) for name, error in far.items()}


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


def of_rounds(folder: Path) -> dict[str, float]:
    """Ids that a list by rounds has other than sorted keys give; scores are exact and many are equal."""
    c, i = var("c"), var("i")
    s = Selector("select", "q", "keys", "ids", None, 2, 1, 16, "N", "NB", 0.25, 3, 3, "float32")
    s = replace(s, eligible=c * 16 <= i, forced=c == i // 16)
    torch.manual_seed(0)
    q, keys = torch.randint(-2, 3, (1, 37, 2, 16)).float(), torch.randint(-1, 2, (1, 40, 1, 16)).float()
    found = []
    for order in ("one_pass", "rounds"):
        ids = torch.full((1, 37, 2, 3), 12345, dtype=torch.int32)
        params = {"B": 1, "TQ": 37, "TK": 640, "q_offset": 500, "N": 40, "NB": 40}
        run(s, {"q": q, "keys": keys, "ids": ids}, params, folder, order=order)
        found.append(ids)
    return {"rounds": float((found[0] != found[1]).sum())}


def of_children(folder: Path) -> dict[str, float]:
    """Ids that a choice within lists has other by the children alone than by all candidates; many scores are equal."""
    c, i = var("c"), var("i")
    s = Selector("select", "q", "keys", "ids", None, 4, 2, 32, "N", "NB", 0.25, 5, 5, "float32", group="mean")
    s = replace(s, eligible=c * 16 <= i, forced=c == i // 16, parents=Parents("above", 1, 3, 4))
    torch.manual_seed(0)
    q, keys = torch.randint(-2, 3, (1, 37, 4, 32)).float(), torch.randint(-1, 2, (1, 39, 2, 32)).float()
    above = torch.rand(1, 37, 1, 10).topk(3, -1).indices.int()
    above[torch.rand(above.shape) < 0.2] = -1
    found = []
    for order, rows, block in (("one_pass", 16, 16), ("children", 8, 8), ("children", 1, 16), ("children", 4, 2)):
        ids = torch.full((1, 37, 2, 5), 12345, dtype=torch.int32)
        params = {"B": 1, "TQ": 37, "TK": 640, "q_offset": 500, "N": 39, "NB": 39}
        x = {"q": q, "keys": keys, "ids": ids, "above": above}
        run(s, x, params, folder, order=order, rows=rows, block=block)
        found.append(ids)
    return {"children": float(sum((ids != found[0]).sum() for ids in found[1:]))}


def main(folder: str) -> None:
    """All five."""
    keep_pace()
    at = Path(folder)
    print(json.dumps(of_selector(at) | of_pooled(at) | of_summary(at) | of_rounds(at) | of_children(at)))


if __name__ == "__main__":
    main(*sys.argv[1:])
