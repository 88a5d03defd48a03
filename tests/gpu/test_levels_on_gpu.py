"""Levels of states on the GPU that is here: outputs and gradients in chunks, a prompt and steps token by token."""

from __future__ import annotations

import pytest
import torch

import sparsec
from sparsec.oracle import check, oracle
from sparsec.testing.whole.trained import wrong_on

pytestmark = pytest.mark.gpu

RULES = ["additive", "delta"]


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("rule", RULES)
def test_chunks(rule: str, dim: int) -> None:
    made = sparsec.preset("log_linear", rule=rule, levels=11, raw=True)
    drawn = sparsec.inputs(made, dtype="bfloat16", device="cuda", B=1, T=700, H=2, HKV=2, D=dim, DV=dim)
    assert wrong_on(sparsec.compile(made, target="cuda"), drawn, "bfloat16") == []


@pytest.mark.parametrize("rule", RULES)
def test_a_prompt_and_steps(rule: str) -> None:
    call = sparsec.compile(sparsec.preset("log_linear", rule=rule, levels=7, raw=True), target="cuda")
    x = sparsec.inputs(call.variant, dtype="float32", device="cuda", B=3, T=44, H=4, HKV=2, D=64, DV=48)
    cache, pieces = call.init_cache(batch=3), (31, 1, 1, 3, *[1] * 8)
    found = []
    for part in zip(*(y.split(pieces, dim=1) for y in x.values()), strict=True):
        out = call.decode(cache, **dict(zip(x, part, strict=True)))
        assert isinstance(out, torch.Tensor)
        found.append(out)
    want = oracle(call.variant, {n: y.cpu() for n, y in x.items()})
    assert isinstance(want, torch.Tensor)
    verdict = check(torch.cat(found, 1).cpu(), want, "float32", "o")
    assert verdict, verdict.sentence
