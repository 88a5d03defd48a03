"""Packed calls on the GPU that is here: equal to the loop over documents, without a wait, captured in a CUDA graph."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import sparsec
from sparsec.oracle.error import check
from sparsec.oracle.packed import packed_oracle
from sparsec.runtime.compiled import Compiled
from sparsec.testing.inputs.variants import NAMES, small
from sparsec.testing.whole.packed import (
    PackedCase,
    cotangents_like,
    floats,
    gradients,
    off_the_loop,
    packed_case,
    results,
)

pytestmark = pytest.mark.gpu

SIZES = {"H": 4, "HKV": 2, "D": 64, "DV": 64, "DR": 64}
LENGTHS = (67, 0, 1, 130, 3)
QUERIES, KEYS = (5, 0, 1, 70, 3), (97, 4, 1, 133, 0)


def _case(layer: Compiled, queries: tuple[int, ...], keys: tuple[int, ...], dtype: torch.dtype) -> PackedCase:
    found = packed_case(layer.variant, queries, queries if layer.packed.face.shared else keys, **SIZES)
    own = {n for n, spec in layer.variant.inputs.items() if spec.dtype == "float"}
    return found.moved(lambda name, x: x.to("cuda", dtype if name in own else x.dtype))


@pytest.mark.parametrize("name", NAMES)
def test_packing_is_looping_over_the_documents(name: str) -> None:
    layer = sparsec.compile(small(name), "cuda")
    queries, keys = (QUERIES, KEYS) if len(name) % 2 else (LENGTHS, LENGTHS)
    case = _case(layer, queries, keys, torch.float32)
    most = {"max_seqlen_q": max(queries), "max_seqlen_k": max(queries if layer.packed.face.shared else keys)}
    wrt = [n for n in floats(layer.variant) if not (name == "head-weights" and n == "sink")]
    outputs, off = off_the_loop(layer, case, wrt, **most)
    assert outputs < 1e-5 and off < 1e-4


@pytest.mark.parametrize("name", ["full", "msa-window", "nsa", "hsa", "moba", "infllm2"])
def test_half_precision_agrees_with_the_oracle(name: str) -> None:
    layer = sparsec.compile(small(name), "cuda")
    case = _case(layer, LENGTHS, LENGTHS, torch.bfloat16)
    outputs = results(layer, **case.packed, **case.ends)
    exact = {n: x.double().cpu() if x.is_floating_point() else x.cpu() for n, x in case.packed.items()}
    truth = packed_oracle(layer.variant, exact, case.ends["cu_seqlens"].tolist())
    for found, wanted in zip(outputs, truth, strict=True):
        assert check(found.cpu()[None], wanted[None], "bfloat16")


@pytest.mark.parametrize("name", ["msa-window", "nsa", "hsa"])
def test_a_packed_call_waits_for_nothing_and_new_lengths_build_nothing(name: str) -> None:
    layer = sparsec.compile(small(name), "cuda")
    cases = [_case(layer, lengths, lengths, torch.bfloat16) for lengths in (LENGTHS, LENGTHS[::-1], (200, 1))]
    wrt = floats(layer.variant)
    seeds = [cotangents_like(results(layer, **c.packed, **c.ends)) for c in cases]
    gradients(layer, cases[0], wrt, seeds[0])
    built = layer.builds
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for case, seed in zip(cases, seeds, strict=True):
            for _ in range(2):
                ends = {n: x.clone() for n, x in case.ends.items()}
                gradients(layer, replace(case, ends=ends), wrt, seed)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert layer.builds == built


def test_a_captured_call_follows_its_ends() -> None:
    layer = sparsec.compile(small("streaming"), "cuda")
    case = _case(layer, (60, 40), (60, 40), torch.bfloat16)
    ends, most = case.ends["cu_seqlens"].clone(), {"max_seqlen_q": 100, "max_seqlen_k": 100}
    results(layer, **case.packed, cu_seqlens=ends, **most)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        (captured,) = results(layer, **case.packed, cu_seqlens=ends, **most)
    for middle in (60, 7, 100):
        ends.copy_(torch.tensor([0, middle, 100], dtype=torch.int32))
        graph.replay()
        (eager,) = results(layer, **case.packed, cu_seqlens=ends.clone(), **most)
        assert torch.equal(captured, eager)
