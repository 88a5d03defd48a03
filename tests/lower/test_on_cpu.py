"""Data-dependent kernels compiled for the CPU under their default schedules, against the tile interpreter."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsec.backends.tvm.build import compile
from sparsec.lower.lowered import Lowered
from sparsec.lower.registry import default, lower_kernel
from sparsec.plan.specs import Combine, GatheredAttention, Pool, Selector, Spec, Summarise
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import var
from sparsec.tile.interpreter import interpret

ROW, KEY, CHUNK = var("i"), var("j"), var("c")
PARAMS = {"B": 2, "TQ": 19, "TK": 75, "q_offset": 56, "N": 5, "NB": 5}

JOINT = GatheredAttention(
    "joint", "q", "k", "v", "ids", None, "out", "lse", "kv_head", 3, 16, 6, 2, 48, 80, 48**-0.5, "float32",
    where=KEY <= ROW,
)  # fmt: skip
CHUNKS = replace(JOINT, per="chunk", weights="w", lse=None, sink="zero", chunk=32, where=None)
STICK = Selector(
    "stick", "q", "k", "ids", "w", 6, 2, 48, "N", "NB", 0.2, 3, 3, "float32", group="mean", order="newest",
    weights="stick", eligible=(CHUNK + 1) * 16 <= ROW,
)  # fmt: skip
POOLED = replace(
    STICK, softmax=True, group="sum", order="oldest", weights=None, weights_out=None, visible=16 * CHUNK + 15 <= ROW,
    eligible=CHUNK * 32 <= ROW, forced=CHUNK < 1, pool=Pool("overlap", 32, 16, 32),
)  # fmt: skip
SPECS: dict[str, Spec] = {
    "joint": JOINT,
    "per chunk": CHUNKS,
    "beside a sink": replace(JOINT, sink="sinks"),
    "per chunk beside a sink": replace(CHUNKS, sink="sinks", chunk=16),
    "small chunks": replace(JOINT, chunk=2),
    "stick": STICK,
    "pooled": POOLED,
    "maximum": Summarise("maximum", "k", "out", 2, 48, 24, 16, "N", "max", "float32", "float32"),
    "merge": Combine("merge", "lse", ("a", "b"), (), ("la", "lb"), "out", "lse", 6, 80, "float32"),
}


def draw(lowered: Lowered) -> dict[str, Tensor]:
    """Random floats, lists of distinct chunks with a gap, and NaN where nothing has been written."""
    torch.manual_seed(0)
    found: dict[str, Tensor] = {}
    for tensor in (t for step in lowered.steps for t in step.program.tensors):
        shape = [PARAMS[extent] if isinstance(extent, str) else extent for extent in tensor.shape]
        if tensor.dtype == "float32":
            found.setdefault(tensor.name, torch.randn(shape))
        else:
            found.setdefault(tensor.name, torch.rand(*shape[:-1], 3).argsort(-1).int() - 1)
    for name in {"out", "lse"} & found.keys():
        found[name].fill_(math.nan)
    return found


@pytest.mark.parametrize("name", SPECS)
def test_the_cpu_agrees_with_the_interpreter(name: str, tmp_path: Path) -> None:
    spec = SPECS[name]
    lowered = lower_kernel(spec, default(spec, "tvm:llvm"))
    tensors = draw(lowered)
    want = {key: x.clone() for key, x in tensors.items()}
    params = {**PARAMS, **{key: int(evaluate(value, PARAMS)) for key, value in lowered.params}}
    for step in lowered.steps:
        interpret(step.program, want, params)
        compile(step.program, step.schedule, tmp_path)([tensors[t.name] for t in step.program.tensors], params)
    for key, x in tensors.items():
        torch.testing.assert_close(x, want[key], rtol=1e-5, atol=1e-5, equal_nan=True)
    assert not any(bool(x.isnan().any()) for x in tensors.values())
