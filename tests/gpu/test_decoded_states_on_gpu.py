"""Decoding with matrix states on the GPU that is here: steps are one forward, in graphs too, without waiting for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sparsec
from sparsec.frontends.preset import find
from sparsec.frontends.text import parse
from sparsec.ir.variant import Variant, dim_names
from sparsec.oracle.error import check
from sparsec.oracle.truth import oracle
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.decode.cache_state import Cache

pytestmark = pytest.mark.gpu

NAMES = ["linear", "retnet", "mamba2", "gla", "hgrn2", "deltanet", "gdn", "kda", "gdn2", "rwkv7"]
SIZES = {"B": 3, "H": 4, "HKV": 2, "D": 64, "DV": 64}
LENGTH, STEPS = 101, (80, 1, 1, 3, 1, 15)
MIXED = """variant mixed(q: [B,T,H,D], k: [B,T,HKV,D], v: [B,T,HKV,DV], g: [B,T,HKV] float32) {
  m = tokens(k, v)
  near = attend(q, m, mask(m) {where = (j <= i) & (j > i - 24)})
  far = recall(q, write(state(), k, v, decay=g) {decay_kind = scalar}) {scale = rsqrt(D)}
  return merge(near, far) {fn = sum}
}"""


def variant(name: str) -> Variant:
    if name == "mixed":
        return parse(MIXED)
    wanted = {"raw": True, "initial": True, "final": True}
    return sparsec.preset(name, **{k: v for k, v in wanted.items() if k in {knob.name for knob in find(name).knobs}})


def parts(x: dict[str, torch.Tensor], start: int, stop: int) -> dict[str, Any]:
    return {n: y[:, start:stop] for n, y in x.items() if n != "m"}


def begun(name: str, dtype: str) -> tuple[Compiled, dict[str, torch.Tensor], Cache]:
    """A design compiled, its tokens, an empty cache."""
    made = compile(variant(name), "cuda")
    x = sparsec.inputs(made.variant, dtype=dtype, device="cuda", seed=0, T=LENGTH, **SIZES)
    return made, x, cache_of(made, x)


def cache_of(made: Compiled, x: dict[str, torch.Tensor]) -> Cache:
    return made.init_cache(3, 192, states={n: x[n] for n in ("m",) if n in x}, deterministic=False, step=32)


def outputs(made: Compiled, cache: Cache, x: dict[str, torch.Tensor], steps: tuple[int, ...]) -> torch.Tensor:
    found, start = [], cache.known_lengths[0]
    for count in steps:
        out = made.decode(cache, **parts(x, start, start + count))
        found.append(out[0] if isinstance(out, tuple) else out)
        start += count
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("name", [*NAMES, "mixed"])
def test_prefill_then_steps_is_one_forward(name: str) -> None:
    dtype = ("bfloat16", "float16", "float32")[NAMES.index(name) % 3 if name in NAMES else 0]
    made, x, cache = begun(name, dtype)
    found = outputs(made, cache, x, STEPS)
    truth = oracle(made.variant, {n: y.cpu() for n, y in x.items()}, form="vector")
    right = truth[0] if isinstance(truth, tuple) else truth
    verdict = check(found.cpu(), right, dtype, "o")
    assert verdict, verdict.sentence
    if isinstance(truth, tuple):
        verdict = check(next(iter(cache.states.values())).cpu(), truth[1], dtype, "o")
        assert verdict, verdict.sentence
    assert len(made.decoder.kept()[1].in_place) == len(made.decoder.spec.states)


@pytest.mark.parametrize(
    ("design", "knobs"),
    [("sse", {"rule": "gdn"}), ("sse", {"k": 2}), ("rsa", {"raw": True}), ("rsa", {"readout": "sum", "raw": True})],
)
def test_parts_and_levels(design: str, knobs: dict[str, Any]) -> None:
    """Prefill then steps, one of which touches chosen parts alone, as one forward."""
    made = compile(sparsec.preset(design, **knobs), "cuda")
    x = sparsec.inputs(made.variant, dtype="float32", device="cuda", seed=0, T=61, DX=48, **SIZES)
    growing = {n for n, s in made.variant.inputs.items() if len(s.shape) > 1 and str(s.shape[1]) == "T"}
    cache, found, start = made.init_cache(3, deterministic=False), list[torch.Tensor](), 0
    for count in (40, 1, 1, 3, *[1] * 16):
        step: dict[str, Any] = {n: y[:, start : start + count] if n in growing else y for n, y in x.items()}
        out = made.decode(cache, **step)
        assert isinstance(out, torch.Tensor)
        found.append(out)
        start += count
    truth = oracle(made.variant, {n: y.cpu() for n, y in x.items()}, form="vector")
    assert isinstance(truth, torch.Tensor)
    verdict = check(torch.cat(found, dim=1).cpu(), truth, "float32", "o")
    assert verdict, verdict.sentence


@pytest.mark.parametrize("name", ["gdn", "mixed"])
def test_a_graph_writes_states_in_place(name: str) -> None:
    made, x, cache = begun(name, "bfloat16")
    other = cache_of(made, x)
    for each in (cache, other):
        outputs(made, each, x, (80,))
    expected = outputs(made, other, x, (1,) * 21)
    graph = made.decode_graph(cache, **parts(x, 80, 81))
    assert cache.known_lengths == (80,) * 3
    found = [graph(**parts(x, n, n + 1))[0].clone() for n in range(80, 90)]
    before = cache.snapshot()
    for _ in range(4):
        graph(**{n: -y if n != "g" else y for n, y in parts(x, 80, 81).items()})
    cache.restore(before)
    found += [graph(**parts(x, n, n + 1))[0].clone() for n in range(90, 101)]
    assert torch.equal(torch.cat(found, dim=1), expected)


@pytest.mark.parametrize("name", ["gdn", "mixed"])
def test_a_step_never_waits_for_the_gpu(name: str) -> None:
    made, x, cache = begun(name, "bfloat16")
    outputs(made, cache, x, (60, 1))
    before = cache.snapshot()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs(made, cache, x, (1,) * 8)
        cache.restore(before)
        cache.sequences(1).free()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_sequence_joins_between_replays() -> None:
    made, x, cache = begun("gdn", "bfloat16")
    outputs(made, cache, x, (80,))
    graph = made.decode_graph(cache, **parts(x, 80, 81))
    graph(**parts(x, 80, 81))
    row = cache.sequences(2)
    row.free()
    alone = cache_of(made, x).sequences(2)
    one = {n: y[2:] for n, y in x.items()}
    for each in (row, alone):
        outputs(made, each, one, (5,))
    step = {n: torch.cat([y[:2, 81:82], y[2:, 5:6]]) for n, y in x.items() if n != "m"}
    found = graph(**step)[0][2:].clone()
    assert torch.equal(found, outputs(made, alone, one, (1,)))


@pytest.mark.parametrize(("name", "knobs"), [("sse", {"rule": "gdn"}), ("rsa", {}), ("rsa", {"readout": "sum"})])
def test_early_launches_change_no_step_of_parts_and_levels(
    name: str, knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty steps, one by one and as a graph; other orders of loads are compiled to other last bits."""
    declared = sparsec.preset(name, raw=True, **knobs)
    sizes = {
        n: s for n, s in {"B": 3, "H": 4, "HKV": 4, "D": 128, "DV": 128, "DX": 64}.items() if n in dim_names(declared)
    }
    x = sparsec.inputs(declared, dtype="bfloat16", device="cuda", seed=0, T=40, **sizes)
    growing = {n for n, s in declared.inputs.items() if len(s.shape) > 1 and str(s.shape[1]) == "T"}
    steps = [dict[str, Any]({n: y[:, t : t + 1] if n in growing else y for n, y in x.items()}) for t in range(40)]
    found = []
    for early in ("0", "1"):
        monkeypatch.setenv("SPARSEC_EARLY_LAUNCH", early)
        made = compile(declared, "cuda")
        caches = [made.init_cache(3, deterministic=False) for _ in range(2)]
        outs = [made.decode(caches[0], **step) for step in steps]
        found.append(torch.cat([out for out in outs if isinstance(out, torch.Tensor)], dim=1))
        graph = made.decode_graph(caches[1], **steps[0])
        again = [graph(**{n: y for n, y in step.items() if n in growing})[0].clone() for step in steps]
        assert torch.equal(torch.cat(again, dim=1), found[-1]) and found[-1].shape[1] == 40
    one, other = (y.double() for y in found)
    assert (one - other).norm() <= 5e-4 * one.norm()
