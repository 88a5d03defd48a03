"""Decoding with a cache that evicts on the GPU that is here: steps are one forward, in graphs too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.oracle.error import check
from sparsec.oracle.truth import oracle
from sparsec.runtime.decode.cache_state import Cache

pytestmark = pytest.mark.gpu

LENGTH = 150


def begun(dtype: str, width: int, **knobs: Any) -> tuple[sparsec.Compiled, dict[str, Tensor], Cache, Tensor]:
    """A preset compiled, its tokens, a cache whose sequences have 70 and 57 of them, and what a forward gives."""
    made = sparsec.compile(sparsec.preset("lola", window=32, keep=24, chunk=16, **knobs), "cuda")
    sizes = {"H": 8, "HKV": 2, "D": width, "DV": width} | ({} if knobs else {"F": width})
    x = sparsec.inputs(made.variant, dtype=dtype, device="cuda", seed=0, B=2, T=LENGTH, **sizes)
    truth, cache = oracle(made.variant, {n: t.cpu() for n, t in x.items()}, form="vector"), made.init_cache(2)
    assert isinstance(truth, Tensor)
    for number, first in enumerate((70, 57)):
        alone = {n: t[number : number + 1, :first] for n, t in x.items()}
        out = made.decode(cache.sequences(number), **alone)
        assert isinstance(out, Tensor)
        verdict = check(out.cpu(), truth[number : number + 1, :first], dtype, "o")
        assert verdict, verdict.sentence
    return made, x, cache, truth


def later(x: Tensor, first: int, count: int) -> Tensor:
    """Rows of the two sequences, so many tokens after their lengths."""
    return torch.stack([x[n, at + first : at + first + count] for n, at in enumerate((70, 57))])


@pytest.mark.parametrize(
    ("dtype", "width", "knobs"),
    [("bfloat16", 128, {}), ("float16", 64, {}), ("float32", 64, {"features": "elu"})],
)
def test_steps_of_sequences_of_their_own_lengths(dtype: str, width: int, knobs: dict[str, Any]) -> None:
    made, x, cache, truth = begun(dtype, width, **knobs)
    found, start = list[Tensor](), 0
    for count in (1, 1, 5, *[1] * 20, 40):
        out = made.decode(cache, **{n: later(t, start, count) for n, t in x.items()})
        assert isinstance(out, Tensor)
        found.append(out)
        start += count
    verdict = check(torch.cat(found, 1).cpu(), later(truth, 0, start), dtype, "o")
    assert verdict, verdict.sentence


@pytest.mark.parametrize("count", [1, 3])
def test_a_graph_takes_chunks_in(count: int) -> None:
    made, x, cache, truth = begun("bfloat16", 64)
    graph = made.decode_graph(cache, **{n: later(t, 0, count) for n, t in x.items()})
    found = list[Tensor]()
    for start in range(0, 60, count):
        found.append(graph(**{n: later(t, start, count) for n, t in x.items()})[0].clone())
        if start == 30:
            before = cache.snapshot()
            graph(**{n: -later(t, start, count) for n, t in x.items()})
            cache.restore(before)
    verdict = check(torch.cat(found, 1).cpu(), later(truth, 0, 60), "bfloat16", "o")
    assert verdict, verdict.sentence


def test_a_step_never_waits_for_the_gpu() -> None:
    made, x, cache, _ = begun("bfloat16", 64)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for start in range(8):
            made.decode(cache, **{n: later(t, start, 1) for n, t in x.items()})
    finally:
        torch.cuda.set_sync_debug_mode("default")
