"""Whole variants on the GPU that is here: small shapes with every edge, real inputs, and kernels built once.

Most of the time goes into compiling, so ``make test-gpu ARGS="-n 8"`` is several times faster.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsec.frontends.preset import preset
from sparsec.runtime.compiled import compile
from sparsec.testing.inputs.variants import NAMES, small
from sparsec.testing.whole.case import WholeCase
from sparsec.testing.whole.chain import links

pytestmark = pytest.mark.gpu

DATA = Path(__file__).parents[2] / "examples" / "data" / "smollm2_layer8_2048.npz"
SHAPES = [((3, 1), (32, 32)), ((4, 2), (64, 64)), ((8, 2), (96, 128)), ((5, 1), (48, 80)), ((16, 1), (128, 128)),
          ((2, 2), (192, 64)), ((2, 1), (256, 256))]  # fmt: skip
DTYPES = ["bfloat16", "float16", "float32"]
LENGTHS: list[tuple[int, int, int | None]] = [(1, 1, None), (67, 67, None), (131, 131, None), (23, 97, None)]
# In place of one token: the divergence of a single chunk is exactly 0, from which a last bit (3e-8) is infinitely far.
SHORTEST: dict[str, tuple[int, int, int | None]] = {"kl-chunks": (33, 33, None)}
# Beside a sink, low scores give outputs below the least normal number of fp16; and log-sum-exps near zero, of products
# of one sign, show that tensor cores cut sums off instead of rounding them (1.2e-5 where fp32 may be off by 1e-5).
NORMAL = ("hsa-softmax-sink", "hsa-window-sum", "head-weights", "kl-chunks")


def cases() -> list[list[WholeCase]]:
    """Every variant with one set of kernels, at every length: lengths, batch and layout build nothing."""
    found = []
    for place, name in enumerate(name for name in NAMES if name != "documents"):
        (heads, dims), dtype = SHAPES[place % len(SHAPES)], DTYPES[place % len(DTYPES)]
        numbers = ["normal", "steep", "ties", "low"][place % 4]
        numbers = "normal" if name in NORMAL else numbers
        layouts = ["bthd", "bhtd", "inset"]
        found.append(
            [
                WholeCase(name, lengths, heads, dims, dtype, 1 + n % 2, layouts[(place + n) % 3], numbers=numbers)
                for n, lengths in enumerate([SHORTEST.get(name, LENGTHS[0]), *LENGTHS[1:]])
            ]
        )
    return found


@pytest.mark.parametrize("group", cases(), ids=lambda group: group[-1].name)
def test_every_link_holds(group: list[WholeCase]) -> None:
    assert [sentence for case in group for sentence in case.wrong("cuda", "cuda")] == []


REAL: dict[str, tuple[str, dict[str, object]]] = {
    "window": ("msa", {"window": 512, "slots": 0, "sinks": 4}),
    "hsa": ("hsa", {"landmark": "mean", "retrieval": "group_mean"}),
    "moba": ("moba", {"block": 128}),
    "infllm2": ("infllm2", {"window": 256, "k": 16}),
    "full": ("full", {}),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("name", REAL)
def test_real_inputs(name: str, dtype: str) -> None:
    design, knobs = REAL[name]
    with np.load(DATA) as data:
        inputs = {n: torch.from_numpy(data[n])[None].to("cuda", getattr(torch, dtype)) for n in ("q", "k", "v")}
    found = links(compile(preset(design, **knobs), target="cuda"), inputs)
    assert [f"{link.lower}: {link.sentence}" for link in found if not link.ok] == []


@pytest.mark.parametrize("name", ["msa-window", "nsa", "moba", "hsa-window"])
def test_a_new_length_builds_no_kernel(name: str) -> None:
    compiled, builds = compile(small(name), target="cuda"), set()
    for tokens, batch in [(67, 1), (1, 1), (128, 2), (1000, 1)]:
        compiled(None, **WholeCase(name, (tokens, tokens, None), dtype="bfloat16", batch=batch).inputs("cuda"))
        builds.add(compiled.builds)
    assert len(builds) == 1


@pytest.mark.parametrize("name", ["msa-window", "nsa", "moba"])
def test_a_call_does_not_wait_for_the_gpu(name: str) -> None:
    compiled = compile(small(name), target="cuda")
    inputs = WholeCase(name, (256, 256, None), dtype="bfloat16").inputs("cuda")
    compiled(None, **inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        compiled(None, **inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
