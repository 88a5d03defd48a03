"""Decoding on the GPU that is here: every variant, graphs over caches that grow, cold chunks of a million tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sparsec
from sparsec.ir.variant import Variant, dim_names
from sparsec.oracle.error import check
from sparsec.oracle.truth import oracle
from sparsec.passes.pipeline import run
from sparsec.passes.stream import stream
from sparsec.runtime.compiled import compile
from sparsec.testing.inputs.variants import EVERY, small
from sparsec.testing.whole.decoding import Tensors, at, decoded

pytestmark = pytest.mark.gpu

LENGTH, STEPS = 167, (90, 1, 1, 1, 7, 30, *[1] * 37)
SIZES = {"B": 2, "H": 8, "HKV": 2, "D": 64, "DV": 64, "DR": 64}


def has_step(name: str) -> bool:
    """Whether a variant can be decoded."""
    try:
        stream(run(small(name)))
    except ValueError:
        return False
    return True


DECODED = tuple(name for name in EVERY if has_step(name))


def draw(variant: Variant, dtype: str, length: int = LENGTH, **more: int) -> dict[str, torch.Tensor]:
    sizes = {n: s for n, s in {**SIZES, **more}.items() if n in dim_names(variant)}
    return sparsec.inputs(variant, dtype=dtype, device="cuda", seed=0, T=length, **sizes)


def as_tuple(found: torch.Tensor | Tensors) -> Tensors:
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("place", range(len(DECODED)), ids=DECODED)
def test_prefill_then_steps_equals_one_forward(place: int) -> None:
    """Bit for bit under the forward's schedules; within the oracle's bounds under those of steps."""
    name, dtype = DECODED[place], ("bfloat16", "float16", "float32")[place % 3]
    variant = small(name)
    made, inputs = compile(variant, "cuda"), draw(variant, dtype)
    named: dict[str, Any] = dict(inputs)
    exact = made.init_cache(2, 192, page=16, step=32, deterministic=True)
    for one, other in zip(decoded(made, exact, inputs, STEPS), as_tuple(made(None, **named)), strict=True):
        assert torch.equal(one, other)
    quick = made.init_cache(2, 192, page=16, step=32, deterministic=False)
    truth = oracle(variant, {n: x.cpu() for n, x in inputs.items()}, form="vector")
    for one, right in zip(decoded(made, quick, inputs, STEPS), as_tuple(truth), strict=True):
        if one.dim() == 4:  # a log-sum-exp is fp32 made of half-precision products
            verdict = check(one.cpu(), right, dtype, "o")
            assert verdict, verdict.sentence


@pytest.mark.parametrize("name", ["streaming", "msa-random", "hsa", "nsa", "moba"])
def test_one_graph_serves_a_cache_that_grows(name: str) -> None:
    made, inputs = compile(small(name), "cuda"), draw(small(name), "bfloat16")
    graphed, eager = (made.init_cache(2, 192, page=16, step=32, deterministic=False) for _ in range(2))
    for cache in (graphed, eager):
        decoded(made, cache, inputs, [100])
    expected = decoded(made, eager, inputs, [1] * 67)[0]

    def step(n: int) -> dict[str, torch.Tensor]:
        """Chunks bring a row every time, which is ignored while they are not complete."""
        found, units = at(made, inputs, n, n + 1), {k.name: k.unit for k in made.decoder.spec.kept}
        late = {n_: inputs[n_][:, n // u : n // u + 1] for n_, u in units.items() if u > 1}
        return {**found, **late}

    graph = made.decode_graph(graphed, **dict[str, Any](step(100)))
    outs = [graph(**{k: x for k, x in step(n).items() if k in graph.tokens})[0].clone() for n in range(100, 167)]
    assert torch.equal(torch.cat(outs, dim=1), expected)
    assert graphed.known_lengths == (167, 167) and graphed.lengths is not None
    assert graphed.lengths.tolist() == [167, 167]


@pytest.mark.parametrize("name", ["streaming", "hsa", "nsa"])
def test_a_step_never_waits_for_the_gpu(name: str) -> None:
    made, inputs = compile(small(name), "cuda"), draw(small(name), "bfloat16")
    cache = made.init_cache(2, 192)
    decoded(made, cache, inputs, [100, 1])
    builds = made.builds
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        decoded(made, cache, inputs, [1] * 40)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert made.builds == builds


def test_a_million_tokens_in_a_fixed_budget() -> None:
    """HSA's chunks are the host's; the GPU holds landmarks and what a step needs: 1 GiB in 128 MiB."""
    length, budget = 2**20, 128 * 2**20
    variant = sparsec.preset("hsa")
    made = compile(variant, "cuda")
    sizes = {"B": 1, "H": 16, "HKV": 2, "D": 128, "DV": 128, "DR": 128}
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    cache = made.init_cache(1, length, cold=True, deterministic=False)
    chunk = 4096
    for n in range(length // chunk - 1):
        tokens: dict[str, Any] = sparsec.inputs(variant, dtype="bfloat16", device="cuda", seed=n, T=chunk, **sizes)
        made.decoder(cache, tokens, outputs=False)
    for _ in range(64):
        step = dict[str, Any](sparsec.inputs(variant, dtype="bfloat16", device="cuda", seed=9, T=1, **sizes))
        out = made.decode(cache, **step)
    torch.cuda.synchronize()
    assert isinstance(out, torch.Tensor) and bool(out.isfinite().all())
    assert torch.cuda.max_memory_allocated() - before < budget < cache.cold_nbytes // 8 + 1
    assert all(x.is_pinned() for n, x in cache.tensors.items() if n in ("k", "v"))


def test_sequences_of_different_lengths_share_a_pool() -> None:
    from sparsec.runtime.decode.pages import Pool

    made, inputs = compile(small("hsa"), "cuda"), draw(small("hsa"), "bfloat16", B=1)
    pool = Pool(40, 16)
    cache = made.init_cache(2, 192, pool=pool, deterministic=True)
    whole = decoded(made, made.init_cache(1, 192, page=16, deterministic=True), inputs, STEPS)[0]
    long = decoded(made, cache.sequences(0), inputs, [160])[0]
    short = decoded(made, cache.sequences(1), inputs, [47])[0]
    assert torch.equal(long, whole[:, :160]) and torch.equal(short, whole[:, :47])
    rest = decoded(made, cache.sequences(1), inputs, [1] * 20)[0]
    assert torch.equal(rest, whole[:, 47:67]) and cache.known_lengths == (160, 67)


@pytest.mark.parametrize("name", ["streaming", "hsa", "nsa", "moba"])
def test_early_launches_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps whose kernels start while the one before ends, one by one and as a graph, give the same bits."""
    inputs = draw(small(name), "bfloat16")
    found = []
    for early in ("0", "1"):
        monkeypatch.setenv("SPARSEC_EARLY_LAUNCH", early)
        made = compile(small(name), "cuda")
        units = {k.name: k.unit for k in made.decoder.spec.kept}
        caches = [made.init_cache(2, 192, page=16, step=32, deterministic=False) for _ in range(2)]
        found.append(decoded(made, caches[0], inputs, [100, *[1] * 67])[0])
        decoded(made, caches[1], inputs, [100])
        late = [{n: inputs[n][:, t // u : t // u + 1] for n, u in units.items() if u > 1} for t in range(100, 167)]
        steps = [
            dict[str, Any]({**at(made, inputs, t, t + 1), **rows})
            for t, rows in zip(range(100, 167), late, strict=True)
        ]
        graph = made.decode_graph(caches[1], **steps[0])
        outs = [graph(**{k: x for k, x in step.items() if k in graph.tokens})[0].clone() for step in steps]
        assert torch.equal(torch.cat(outs, dim=1), found[-1][:, 100:])
    assert torch.equal(*found)
