"""Mamba-1, whose channels are heads: its published recurrence, gradients, steps, and kernels for a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.backends.triton.compile import Compiled, compile_all
from sparsec.oracle import oracle
from sparsec.testing.triton.ahead import jobs
from sparsec.testing.whole.trained import wrong_on

SIZES = {"B": 2, "H": 1, "HV": 6, "D": 16, "DV": 1}


def published(x: dict[str, Tensor]) -> Tensor:
    """h = exp(Δ A) ⊙ h + Δ x B, y = h C per channel, token by token, in fp64 (arXiv 2312.00752, algorithm 2)."""
    d = {name: value.double() for name, value in x.items()}
    step, rate = torch.nn.functional.softplus(d["dt"] + d["dt_bias"]), -d["A_log"][0, 0].exp()
    h, outputs = torch.zeros(*step.shape[::2], rate.shape[-1], dtype=torch.float64), []
    for t in range(step.shape[1]):
        now = step[:, t, :, None]
        h = torch.exp(now * rate) * h + now * d["v"][:, t] * d["k"][:, t]
        outputs.append((h * d["q"][:, t]).sum(-1))
    return torch.stack(outputs, 1)[..., None]


def test_the_oracle_is_the_published_recurrence() -> None:
    layer = sparsec.preset("mamba1")
    x = sparsec.inputs(layer, dtype="float32", device="cpu", seed=0, T=23, **SIZES)
    torch.testing.assert_close(oracle(layer, x), published(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("target", ["interpreter", "cpu"])
@pytest.mark.parametrize(("columns", "states"), [(1, False), (8, True)])
def test_outputs_and_gradients(target: str, columns: int, states: bool) -> None:
    layer = sparsec.preset("mamba1", initial=states, final=states)
    x = sparsec.inputs(layer, dtype="float32", device="cpu", seed=0, T=19, **{**SIZES, "DV": columns})
    assert wrong_on(sparsec.compile(layer, target=target), x, "float32") == []


def test_prefill_then_steps_is_one_forward() -> None:
    layer = sparsec.compile(sparsec.preset("mamba1"), target="interpreter")
    x = sparsec.inputs(layer.variant, dtype="float32", device="cpu", seed=0, T=12, **SIZES)
    cache, outputs, start = layer.init_cache(2), list[Tensor](), 0
    for count in (7, 1, 1, 3):
        fresh = {n: x[n][:, start : start + count] if n in ("q", "k", "v", "dt") else x[n] for n in x}
        found = layer.decode(cache, **fresh)
        assert isinstance(found, Tensor)
        outputs.append(found)
        start += count
    torch.testing.assert_close(torch.cat(outputs, 1), published(x).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_it_compiles_for_an_h100(tmp_path: Path, dtype: str) -> None:
    layer = sparsec.compile(sparsec.preset("mamba1"), target="interpreter")
    wrt = ("q", "k", "v", "dt", "dt_bias", "A_log")
    split = layer.training.joint({**SIZES, "HV": 64}, dtype, wrt).split
    made = [job for plan in (split.forward, split.backward) for k in plan.kernels for _, job in jobs(k.spec, "sm_90")]
    found = compile_all(made, tmp_path, 120)
    assert all(isinstance(one, Compiled) and one.resources.spills == 0 for one in found), found
