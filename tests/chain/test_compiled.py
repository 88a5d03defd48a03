"""Whole variants from compiled kernels without a GPU: TVM on this CPU, and Triton's interpreter, each in a process."""

from __future__ import annotations

import pytest

from sparsec.testing.whole.case import WholeCase
from sparsec.testing.whole.worker import run_apart

LENGTHS: list[tuple[int, int, int | None]] = [(1, 1, None), (17, 17, None), (67, 67, None), (23, 97, None)]
HEADS = [(3, 1), (4, 2), (5, 1), (16, 1)]
DIMS = [(32, 32), (48, 80), (64, 64), (96, 128)]
LAYOUTS = ["bthd", "bhtd", "inset"]
TVM = (
    "msa-window", "msa-log-window-gated", "longformer-dilated", "hsa-window", "nsa", "moba", "infllm2-free", "joined",
)  # fmt: skip


def on_cpu(place: int, name: str, dtype: str) -> list[WholeCase]:
    """A variant at one set of heads and dims, so that its kernels are compiled once, at every length and layout."""
    heads, dims = HEADS[place % len(HEADS)], DIMS[place % len(DIMS)]
    return [
        WholeCase(name, lengths, heads, dims, dtype, 1 + n % 2, LAYOUTS[(place + n) % len(LAYOUTS)])
        for n, lengths in enumerate(LENGTHS)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_tvm(dtype: str) -> None:
    names = TVM if dtype == "float32" else TVM[:1] + TVM[4:5]
    cases = [case for place, name in enumerate(names) for case in on_cpu(place, name, dtype)]
    assert run_apart(cases, "tvm:llvm", {"TVM_NUM_THREADS": "1"}, 600) == {}


# One case per schedule class and loop order; bf16 is left out: the interpreter multiplies its bit patterns.
INTERPRETED = [
    WholeCase("msa-window", (67, 67, None), (2, 1), dtype="float32", style="gpu"),
    WholeCase("open", (33, 17, None), (1, 1), (48, 80), "float16", style="flipped"),
    WholeCase("msa-random-alone", (67, 67, None), (1, 1), dtype="float16", style="gpu"),
    WholeCase("hsa-mean", (23, 97, None), (3, 1), dtype="float16", style="gpu"),
    WholeCase("hsa-softmax-sink", (17, 17, None), (2, 1), dtype="float32", style="flipped"),
    WholeCase("nsa", (19, 67, None), (4, 1), dtype="float32", layout="inset", style="gpu"),
    WholeCase("moba", (17, 67, None), (2, 2), dtype="float16", layout="bhtd", style="gpu"),
    WholeCase("open-chunks", (17, 41, None), (2, 1), dtype="float32", style="flipped"),
    WholeCase("joined", (33, 33, None), (2, 1), dtype="float32", style="gpu"),
]


@pytest.mark.slow
def test_triton_interpreted() -> None:
    assert run_apart(INTERPRETED, "triton:sm_90", {"TRITON_INTERPRET": "1"}, 300) == {}
