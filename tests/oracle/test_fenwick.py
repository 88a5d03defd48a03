"""Levels of a Fenwick schedule: the ladder of states is the closed form, and equal weights are the base."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sparsec
from sparsec.frontends.recurrent import keys, queries, values
from sparsec.ir import build as lang
from sparsec.ir.build_state import recall, state, write
from sparsec.ir.error import DeclarationError, InputError
from sparsec.ir.variant import variant
from sparsec.oracle import oracle

SIZES: dict[str, Any] = {"B": 2, "H": 2, "HKV": 1, "D": 3, "DV": 4}
FEW = settings(max_examples=12, deadline=None)


def draw(rule: str, tokens: int, levels: int = 6) -> tuple[sparsec.Variant, dict[str, Tensor]]:
    made = sparsec.preset("log_linear", rule=rule, levels=levels, raw=True)
    return made, {n: x.double() for n, x in sparsec.inputs(made, T=tokens, **SIZES).items()}


def levels(tokens: int) -> Tensor:
    return torch.tensor([[(t ^ s).bit_length() for s in range(tokens)] for t in range(tokens)])


@FEW
@given(st.integers(1, 32))
def test_additive_writes_have_a_closed_form(tokens: int) -> None:
    made, x = draw("additive", tokens)
    q, k, v, lam = x["q"], x["k"].expand_as(x["q"]), x["v"].expand(-1, -1, 2, -1), x["lam"]
    gates = x["g"].expand(-1, -1, 2).cumsum(1)
    scores = torch.einsum("bthd,bshd->bhts", q, k) * q.shape[3] ** -0.5
    fading = (gates[:, :, None] - gates[:, None]).permute(0, 3, 1, 2).exp()
    weights = lam.permute(0, 2, 1, 3).gather(3, levels(tokens).expand(2, 2, -1, -1).clamp(max=5))
    want = torch.einsum("bhts,bshe->bthe", (scores * fading * weights).tril(), v)
    torch.testing.assert_close(oracle(made, x, form="loop"), want)


@FEW
@given(st.integers(1, 32), st.sampled_from(["additive", "delta"]))
def test_states_per_level_are_the_ladder(tokens: int, rule: str) -> None:
    made, x = draw(rule, tokens)
    torch.testing.assert_close(oracle(made, x, form="vector"), oracle(made, x, form="loop"))


@pytest.mark.parametrize(("rule", "base"), [("additive", "retnet"), ("delta", "gdn")])
def test_equal_weights_are_the_base(rule: str, base: str) -> None:
    made, x = draw(rule, 21)
    own = sparsec.preset(base, **({"raw": True} if base == "gdn" else {}))
    x["lam"] = torch.ones_like(x["lam"])
    torch.testing.assert_close(oracle(made, x), oracle(own, {n: y for n, y in x.items() if n != "lam"}))


def test_gradients_agree() -> None:
    made, x = draw("delta", 11)
    leaves = [y.requires_grad_() for y in x.values()]
    found = [torch.autograd.grad(oracle(made, x, form=form).square().sum(), leaves) for form in ("loop", "vector")]  # type: ignore[union-attr]
    torch.testing.assert_close(*found)


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(InputError, match=r"T = 33 with 6 levels: 6 levels reach over 32 tokens. Fix: declare 7 levels"):
        draw("additive", 33)
    bank = write(state(parts=6, schedule="fenwick"), keys(), values())
    with pytest.raises(DeclarationError, match=r"levels have a weight each per token and head: \[B,T,H,6\]"):
        recall(queries(), bank)
    with pytest.raises(DeclarationError, match="read alone, in a sum, after the write"):
        recall(queries(), bank, when="before", level_gate=lang.input("lam", "B T H 6"))
    assert variant("v", recall(queries(), bank, level_gate=lang.input("lam", "B T H 6"))).inputs
