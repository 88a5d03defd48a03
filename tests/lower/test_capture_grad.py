"""Gradients of tensors that biases read through lists of chunks: decays, slopes, tables of distances."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sparsec
from sparsec.ir.variant import Variant
from sparsec.plan.attention.capture_specs import GatheredGradCapture
from sparsec.plan.specs import Capture
from sparsec.runtime.deterministic import OrderError
from sparsec.scalar.expr import element, var
from sparsec.testing.kernels.gathered import attention
from sparsec.testing.triton.ahead import ARCHITECTURES, unfit
from sparsec.testing.whole.trained import wrong_on

QKV = "q: [B, T, H, D], k: [B, T, HKV, D], v: [B, T, HKV, DV]"
BODIES = {
    # forget gates, over chunks that each head chooses: elements of a row and of keys
    "fading": (
        "f: [B, T, H] float32",
        """memory = tokens(k, v) {chunk = 16}
        fade = prefix(map(f) {fn = -softplus(x0)})
        chosen = topk(score(q, summary(memory) {size = 16, stride = 16}))
                 {k = 3, size = 16, scope = head, eligible = 16 * c <= i, forced = c == i // 16}
        o = attend(q, memory, chosen, mask(memory) {where = j <= i}, fade=fade)
            {bias = score + fade[b, i, h] - fade[b, j, h]}""",
    ),
    # a number per head and one per batch, whose sign distances give (means of distances would magnify what rounding
    # outputs does to rowdots), over single tokens that all heads share, under a soft cap
    "sloped": (
        "qi: [B, T, HI, DI], ki: [B, T, 1, DI], wi: [B, T, HI], slope: [H] float32, off: [B] float32",
        """memory = tokens(k, v)
        chosen = topk(score(qi, tokens(ki), head_weights=wi) {fn = indexer})
                 {k = 11, unit = token, size = 1, scope = token, eligible = c <= i}
        o = attend(q, memory, chosen, slope=slope, off=off)
            {softcap = 10.0, bias = score - (slope[h] + 0.5 * off[b]) * ((i - j) % 2 - 0.5)}""",
    ),
    # a table of distances that scales scores, a softmax inside each chunk, and a sink there
    "tabled": (
        "table: [H, NB] float32",
        """memory = tokens(k, v) {chunk = 32}
        scores = reduce(score(q, summary(memory) {size = 32, stride = 32})) {over = group, op = mean}
        chosen = topk(scores) {k = 2, size = 32, eligible = 32 * c <= i, order = newest,
                 selector_gradient = through_weights}
        o = attend(q, memory, chosen, mask(memory) {where = j <= i}, table=table,
            weights=weights(scores, chosen) {fn = stick})
            {per = chunk, sink = zero, softcap = 8.0, bias = score * (1.0 + table[h, minimum((i - j) // 16, 5)])}""",
    ),
}
LAYERS = {
    name: sparsec.parse(f"variant {name}({QKV}, {more}) {{\n{body}\nreturn o\n}}")
    for name, (more, body) in BODIES.items()
}


def drawn(variant: Variant, tokens: int, dtype: str = "float32", heads: int = 4, kv_heads: int = 2) -> dict[str, Any]:
    sizes: dict[str, Any] = {
        "B": 2,
        "T": tokens,
        "H": heads,
        "HKV": kv_heads,
        "D": 16,
        "DV": 32,
        "NB": 6,
        "HI": 2,
        "DI": 16,
    }
    known = {n: s for n, s in sizes.items() if n in str([str(x) for x in variant.inputs.values()])}
    return sparsec.inputs(variant, dtype=getattr(torch, dtype), seed=3, **known)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_agree_with_the_oracle(name: str, dtype: str) -> None:
    made = sparsec.compile(LAYERS[name], target="interpreter")
    assert wrong_on(made, drawn(made.variant, 67, dtype), dtype) == []


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 1), (2, 2)])
@pytest.mark.parametrize("name", LAYERS)
def test_groups(name: str, heads: int, kv_heads: int) -> None:
    made = sparsec.compile(LAYERS[name], target="interpreter")
    assert wrong_on(made, drawn(made.variant, 37, heads=heads, kv_heads=kv_heads), "float32") == []


@pytest.mark.parametrize("name", LAYERS)
def test_the_cpu_agrees(name: str) -> None:
    made = sparsec.compile(LAYERS[name], target="cpu")
    assert wrong_on(made, drawn(made.variant, 190), "float32") == []


def test_what_is_hidden_gives_nothing() -> None:
    """A table's distances that no pair has, and its heads apart."""
    x = drawn(LAYERS["tabled"], 40)
    table = x["table"].requires_grad_()
    out = sparsec.compile(LAYERS["tabled"], target="interpreter")(**x)
    assert isinstance(out, torch.Tensor)
    (grad,) = torch.autograd.grad(out[:, :, 1].square().sum(), [table])
    assert grad[1, :3].ne(0).all() and not grad[1, 3:].any() and not grad[[0, 2, 3]].any()


def test_additions_in_no_order_are_refused_where_order_is_asked_for() -> None:
    made, x = sparsec.compile(LAYERS["sloped"], target="interpreter"), drawn(LAYERS["sloped"], 20)
    x["slope"].requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(OrderError, match="atomic additions"):
            made(**x)
    finally:
        torch.use_deterministic_algorithms(False)


def faded(group: int, dim: int, dtype: str = "bfloat16") -> GatheredGradCapture:
    """Of a layer of a real model."""
    captured, h = Capture("c", "float32", 1, (4 * group,)), var("h")
    bias = var("score", "float") - element("c", h) * (var("i") - var("j"))
    forward = attention(group, 4, (dim, dim), chunk=64, slots=16, dtype=dtype, bias=bias, captures=(captured,))
    return GatheredGradCapture("pull", forward, "c", (4 * group,), "do", "delta", "dc", dtype)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_defaults_fit_without_spills(arch: str, tmp_path: Any) -> None:
    layers = {"wide": (faded(16, 128),), "small": (faded(4, 64),)}
    assert unfit(layers, arch, tmp_path, wide=lambda program: False) == {}
