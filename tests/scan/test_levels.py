"""Levels of states: each stores what the last one left; outputs and gradients are the oracle's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sparsec
from sparsec.frontends.text import parse
from sparsec.ir.op import Op
from sparsec.lower.registry import default, lower_kernel
from sparsec.oracle import check, oracle
from sparsec.passes.expand_readout import expand_readout
from sparsec.passes.expand_residual import expand_residual
from sparsec.passes.expand_slots import expand_slots
from sparsec.passes.pipeline import training
from sparsec.plan.states.scan_specs import Scan, ScanGrad
from sparsec.testing.whole.trained import wrong_on

SIZES: dict[str, Any] = {"B": 2, "T": 9, "H": 2, "HKV": 1, "D": 16, "DV": 8}
ONE: dict[str, Any] = {"parts": 1, "branching": 1, "readout": "sum"}
KNOBS: dict[str, dict[str, Any]] = {
    "one level": {"levels": 1},
    "what the recall after the write lacks": {"levels": 2},
    "what the prediction lacks, unclipped": {"levels": 3, "left": "pre", "clip": 0.0},
    "additive writes": {"levels": 3, "rule": "additive"},
    "tightly clipped": {"levels": 4, "clip": 0.05},
    "nothing taken away": {"levels": 2, "left": "none"},
    "a softmax over states": {"levels": 3, "readout": "state_softmax"},
    "of a single state": {"levels": 1, "readout": "state_softmax"},
}


ROUTED: dict[str, dict[str, Any]] = {
    "flat": {"levels": 3},
    "a tree": {"levels": 3, "routing": "tree", "readout": "sum"},
    "four levels, by the prediction": {"levels": 4, "branching": 2, "routing": "tree", "left": "pre"},
    "additive writes": {"levels": 2, "rule": "additive"},
    "two parts per token": {"levels": 3, "k": 2, "readout": "sum", "routing": "tree", "left": "pre"},
    "slots of levels": {"levels": 3, "routing": "tree", "readout": "slot_softmax"},
    "a softmax over two parts per token": {"levels": 3, "k": 2, "routing": "tree"},
    "over three, the best three of four": {"levels": 2, "k": 3, "left": "pre", "top": 3},
    "over two, additive and unclipped": {"levels": 2, "k": 2, "rule": "additive", "clip": 0.0, "raw": True},
    "slots of two parts": {"levels": 3, "k": 2, "readout": "slot_softmax", "routing": "tree"},
    "slots of two additive parts": {"levels": 2, "k": 2, "rule": "additive", "readout": "slot_softmax"},
    "slots of additive levels": {"levels": 2, "rule": "additive", "readout": "slot_softmax", "left": "pre"},
    "slots of one state": {"levels": 1, "readout": "slot_softmax"},
}


@pytest.mark.parametrize("which", ROUTED)
def test_levels_of_parts(which: str) -> None:
    """A router chooses a state per level, the next level stores what it leaves."""
    variant = sparsec.preset("rsa", **ROUTED[which])
    made = sparsec.compile(variant, target="interpreter")
    sizes = SIZES | ({"DX": 4} if "x" in variant.inputs else {})
    assert wrong_on(made, sparsec.inputs(variant, **sizes), "float32") == []


def test_narrow_heads_ask_by_queries_that_are_not_rounded() -> None:
    """Else the roundings of unit queries, unit keys, what is left and outputs, 1.65e-3 each, are more than 3e-3."""
    made = sparsec.compile(sparsec.preset("rsa", levels=2), target="interpreter")
    x = sparsec.inputs(made.variant, B=1, T=83, H=2, HKV=1, D=16, DV=16, DX=16, dtype="bfloat16")
    out, truth = made(**x), oracle(made.variant, x, form="vector")
    assert isinstance(out, torch.Tensor) and isinstance(truth, torch.Tensor)
    found = check(out, truth, "bfloat16")
    assert found, found.sentence


@pytest.mark.parametrize("raw", [False, True])
def test_gated_slots(raw: bool) -> None:
    """Slots that fade each by its own gate: their keys are states whose value columns fade."""
    variant = sparsec.preset("gsa", raw=raw)
    x = sparsec.inputs(variant, M=6, **SIZES)
    assert wrong_on(sparsec.compile(variant, target="interpreter"), x, "float32") == []
    torch.testing.assert_close(oracle(expand_slots(variant), x), oracle(variant, x))


def test_levels_in_half_precision() -> None:
    """What several banks pass back to the queries and keys they share is rounded once per bank."""
    variant = sparsec.preset("rsa", levels=3, parts=1, branching=1, left="none", raw=True)
    x = sparsec.inputs(variant, dtype="bfloat16", **SIZES)
    x |= {name: torch.nn.functional.normalize(x[name].float(), dim=-1).bfloat16() for name in ("q", "k")}
    assert wrong_on(sparsec.compile(variant, target="interpreter"), x, "bfloat16") == []


OWN = """variant own(q: [B,T,H,D], k: [B,T,HKV,D], v: [B,T,HKV,DV], beta: [B,T,HKV], g: [B,T,HKV] float32) {
  s = write(state(), k, v, beta=beta, decay=g) {rule = delta, decay_kind = scalar}
  return surprise(s), norm2(k), recall(q, s), s
}"""


@pytest.mark.parametrize("form", ["loop", "vector"])
def test_surprises_are_what_the_prediction_lacks(form: Any) -> None:
    variant, x = parse(OWN), sparsec.inputs(parse(OWN), **SIZES)
    other = parse(OWN.replace("surprise(s), norm2(k)", "recall(k, s) {when = before}"))
    known = oracle(other, x, form=form)[0]
    found, square = oracle(variant, x, form=form)[:2]
    torch.testing.assert_close(found, x["v"] - known, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(square, x["k"].double().square().sum(-1))
    assert wrong_on(sparsec.compile(variant, target="interpreter"), x, "float32") == []


@pytest.mark.parametrize("which", KNOBS)
def test_outputs_and_gradients(which: str) -> None:
    variant = sparsec.preset("rsa", **ONE | KNOBS[which])
    made = sparsec.compile(variant, target="interpreter")
    assert wrong_on(made, sparsec.inputs(variant, **SIZES), "float32") == []


TWO = """variant two(q: [B,T,H,D], k: [B,T,HKV,D], v: [B,T,HKV,DV], w: [B,T,HKV,DV], beta: [B,T,HKV],
                       g: [B,T,HKV] float32, kappa: [H] float32, bias: [B,T,H,3], gain: [B,T,H,3]) {
  a = write(state(), k, v, beta=beta, decay=g) {rule = delta, decay_kind = scalar}
  b = write(state(), k, w, decay=g) {decay_kind = scalar}
  c = write(state(), k, w, beta=beta)
  return recall(q, a, b, c, kappa=kappa, level_bias=bias, level_gate=gain) {mode = state_softmax, TOP, scale = 0.5}
}"""


@pytest.mark.parametrize("top", ["top = none", "top = 1", "top = 2"])
def test_softmax_over_states_with_biases_and_gains(top: str) -> None:
    """Queries share states; a bias tells banks apart for the first token too, for which all masses point alike."""
    variant = parse(TWO.replace("TOP", top))
    x = sparsec.inputs(variant, B=2, T=9, H=4, HKV=2, D=16, DV=8)
    x["bias"] += torch.tensor([0.0, 1.0, 2.0])
    assert wrong_on(sparsec.compile(variant, target="interpreter"), x, "float32") == []
    expanded = expand_readout(variant)
    torch.testing.assert_close(oracle(expanded, x), oracle(variant, x))
    assert Op.MIXTURE in {node.op for node in expanded.nodes}


def test_masses_of_nothing_weigh_by_their_bias_alone() -> None:
    """Writes of strength 0 leave states and masses 0: the weights are even, and no gradient is NaN."""
    variant = parse(TWO.replace("TOP, ", ""))
    x = sparsec.inputs(variant, B=1, T=5, H=2, HKV=1, D=16, DV=8)
    x |= {"beta": torch.zeros_like(x["beta"]), "k": torch.zeros_like(x["k"]), "bias": torch.zeros_like(x["bias"])}
    leaves = {name: t.requires_grad_() for name, t in x.items()}
    out = sparsec.compile(variant, target="interpreter")(**leaves)
    assert isinstance(out, torch.Tensor) and bool((out == 0).all())
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(out.sum(), list(leaves.values())))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str) -> None:
    variant = sparsec.preset("rsa", **ONE | {"readout": "state_softmax"}, levels=3, raw=True)
    made = sparsec.compile(variant, target="interpreter")
    assert wrong_on(made, sparsec.inputs(variant, dtype=getattr(torch, dtype), **SIZES), dtype) == []


def test_compiled_for_this_cpu() -> None:
    variant = sparsec.preset("rsa", **ONE | {"readout": "state_softmax"}, levels=2)
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


def test_every_kernel_has_a_default_on_a_gpu() -> None:
    """The sums of a route's weights too, whose rows are no multiple of 16."""
    made = sparsec.compile(training(sparsec.preset("rsa", raw=True)).variant, target="triton:sm_90")
    dims = {"B": 1, "T": 512, "H": 2, "HKV": 2, "D": 128, "DV": 128, "DX": 64}
    for kernel in made.plan(dims, "bfloat16").kernels:
        schedule = default(kernel.spec, "triton:sm_90")
        assert lower_kernel(kernel.spec, schedule).steps
        if isinstance(kernel.spec, Scan | ScanGrad):
            assert schedule.order == "chunk", kernel.name
