"""Levels of states: each stores what the last one left; outputs and gradients are the oracle's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sparsec
from sparsec.frontends.text import parse
from sparsec.ir.op import Op
from sparsec.oracle import oracle
from sparsec.passes.expand_readout import expand_readout
from sparsec.passes.expand_residual import expand_residual
from sparsec.testing.trained import wrong_on

SIZES: dict[str, Any] = {"B": 2, "T": 9, "H": 2, "HKV": 1, "D": 16, "DV": 8}
ONE: dict[str, Any] = {"parts": 1, "branching": 1, "readout": "sum"}
KNOBS: dict[str, dict[str, Any]] = {
    "one level": {"levels": 1},
    "what the recall after the write lacks": {"levels": 2},
    "what the prediction lacks, unclipped": {"levels": 3, "left": "pre", "clip": 0.0},
    "additive writes": {"levels": 3, "rule": "additive"},
    "tightly clipped": {"levels": 4, "clip": 0.05},
    "nothing taken away": {"levels": 2, "left": "none"},
}


@pytest.mark.parametrize("which", KNOBS)
def test_outputs_and_gradients(which: str) -> None:
    variant = sparsec.preset("rsa", **ONE | KNOBS[which])
    made = sparsec.compile(variant, target="interpreter")
    assert wrong_on(made, sparsec.inputs(variant, **SIZES), "float32") == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str) -> None:
    variant = sparsec.preset("rsa", **ONE, levels=3, raw=True)
    made = sparsec.compile(variant, target="interpreter")
    assert wrong_on(made, sparsec.inputs(variant, dtype=getattr(torch, dtype), **SIZES), dtype) == []


def test_compiled_for_this_cpu() -> None:
    variant = sparsec.preset("rsa", **ONE, levels=2)
    assert wrong_on(sparsec.compile(variant, target="tvm:llvm"), sparsec.inputs(variant, **SIZES), "float32") == []


def test_the_passes_keep_the_meaning() -> None:
    variant = sparsec.preset("rsa", **ONE, levels=3, clip=0.5)
    expanded = expand_readout(expand_residual(variant))
    assert not {Op.RESIDUAL} & {node.op for node in expanded.nodes}
    x = sparsec.inputs(variant, **SIZES)
    torch.testing.assert_close(oracle(expanded, x), oracle(variant, x))


def test_one_number_per_head_weighs_rows() -> None:
    """``align = heads``, of a number per token and head and of one per head, with their gradients."""
    variant = parse("""variant x(v: [B,T,HKV,DV], g: [B,T,HKV], s: [HKV]) {
      return map(v, g, s) {fn = x0 * tanh(x1) + x2, align = heads} }""")
    made, x = sparsec.compile(variant, target="interpreter"), sparsec.inputs(variant, B=2, T=9, HKV=3, DV=8)
    assert wrong_on(made, x, "float32") == []
    torch.testing.assert_close(
        oracle(variant, x), (x["v"] * x["g"].tanh()[..., None] + x["s"][:, None]).double(), rtol=1e-6, atol=1e-6
    )
