"""Gradients of whole variants on the GPU that is here, through torch's autograd, against the oracle's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsec.frontends.preset import preset
from sparsec.runtime.compiled import compile
from sparsec.testing.inputs.variants import SMALL, small
from sparsec.testing.whole.case import WholeCase
from sparsec.testing.whole.trained import wrong_gradients, wrong_on

pytestmark = pytest.mark.gpu

DATA = Path(__file__).parents[2] / "examples" / "data" / "smollm2_layer8_2048.npz"
SHAPES = [((4, 2), (64, 64)), ((3, 1), (32, 32)), ((16, 1), (128, 128)), ((8, 2), (96, 128)), ((5, 1), (48, 80))]
DTYPES = ["bfloat16", "float16", "float32"]
LENGTHS: list[tuple[int, int, int | None]] = [(67, 67, None), (131, 131, None), (23, 97, None)]


def cases() -> list[list[WholeCase]]:
    """Every preset with one set of kernels, at every length."""
    found = []
    for place, name in enumerate(SMALL):
        (heads, dims), dtype = SHAPES[place % len(SHAPES)], DTYPES[place % len(DTYPES)]
        batch = 1 + place % 2
        found.append([WholeCase(name, lengths, heads, dims, dtype, batch) for lengths in LENGTHS])
    return found


@pytest.mark.parametrize("group", cases(), ids=lambda group: group[-1].name)
def test_gradients_are_the_oracles(group: list[WholeCase]) -> None:
    assert [f"{c.name}: {s}" for c in group for s in wrong_gradients(c, "cuda", "cuda")] == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("name", ["streaming", "nsa-selected", "hsa", "moba"])
def test_gradients_at_the_tiles_of_real_sizes(name: str, dim: int, dtype: str) -> None:
    case = WholeCase(name, (515, 515, None), (16, 2), (dim, dim), dtype)
    assert wrong_gradients(case, "cuda", "cuda") == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["full", "streaming", "hsa", "moba"])
def test_gradients_of_real_inputs(name: str, dtype: str) -> None:
    knobs: dict[str, object] = {"landmark": "mean", "retrieval": "group_mean"} if name == "hsa" else {}
    with np.load(DATA) as data:
        kinds = ("cuda", getattr(torch, dtype))
        inputs = {n: torch.from_numpy(data[n])[None, :1024].to(*kinds).contiguous() for n in ("q", "k", "v")}
    assert wrong_on(compile(preset(name, **knobs), target="cuda"), inputs, dtype) == []


@pytest.mark.parametrize("name", ["msa-window", "nsa", "hsa-window"])
def test_training_builds_kernels_once_and_waits_for_nothing(name: str) -> None:
    compiled, builds = compile(small(name), target="cuda"), set()
    for tokens, batch in [(67, 1), (128, 2), (1000, 1)]:
        inputs = WholeCase(name, (tokens, tokens, None), dtype="bfloat16", batch=batch).inputs("cuda")
        leaves = {n: x.requires_grad_(x.is_floating_point()) for n, x in inputs.items()}
        for mode in ("default", "error"):
            torch.cuda.set_sync_debug_mode(mode)
            try:
                out = compiled(None, **leaves)
                assert isinstance(out, torch.Tensor)
                out.backward(torch.ones_like(out))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        builds.add(compiled.builds)
    assert len(builds) == 1


@pytest.mark.parametrize("name", ["streaming", "nsa"])
def test_gradients_are_the_same_from_run_to_run(name: str) -> None:
    compiled = compile(small(name), target="cuda")
    inputs = WholeCase(name, (515, 515, None), (8, 2), (64, 64), "bfloat16").inputs("cuda")
    runs = []
    for _ in range(3):
        leaves = {n: x.detach().requires_grad_(x.is_floating_point()) for n, x in inputs.items()}
        out = compiled(None, **leaves)
        assert isinstance(out, torch.Tensor)
        out.backward(torch.ones_like(out))
        runs.append([x.grad for x in leaves.values() if x.grad is not None])
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))
