"""Every recurrence that is a preset: its kernels give the oracle's outputs and gradients, mapped inputs or raw ones."""

from __future__ import annotations

import pytest
import torch

import sparsec
from sparsec.frontends.preset import find, preset
from sparsec.ir.error import DeclarationError, InputError
from sparsec.oracle import oracle
from sparsec.plan.states.scan_specs import Operand
from sparsec.runtime.compiled import compile
from sparsec.testing.whole.trained import wrong_on

NAMES = ["linear", "retnet", "mamba2", "gla", "hgrn2", "deltanet", "gdn", "kda", "gdn2", "rwkv7", "row_sparse"]
KNOBS: dict[str, dict[str, object]] = {
    "mapped": {},
    "raw, with first and last states": {"raw": True, "initial": True, "final": True},
}


def knobs(name: str, which: str) -> dict[str, object]:
    known = {knob.name for knob in find(name).knobs}
    return {key: value for key, value in KNOBS[which].items() if key in known}


@pytest.mark.parametrize("which", KNOBS)
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients(name: str, which: str) -> None:
    variant = sparsec.preset(name, **knobs(name, which))
    drawn = sparsec.inputs(variant, B=2, T=9, H=2, HKV=1, D=16, DV=8)
    assert wrong_on(sparsec.compile(variant, target="interpreter"), drawn, "float32") == []


def test_what_the_literature_calls_equal_is_equal() -> None:
    """KDA with one decay for all channels is Gated DeltaNet; GDN-2 with b = w = beta is KDA; RWKV-7 holds GLA."""
    raw = {"raw": True}
    gdn, kda, gdn2, gla, rwkv7 = (sparsec.preset(name, **raw) for name in ("gdn", "kda", "gdn2", "gla", "rwkv7"))
    x = {n: y.double() for n, y in sparsec.inputs(gdn, B=2, T=9, H=2, HKV=2, D=4, DV=8).items()}
    wide = x["g"][..., None].expand(*x["g"].shape, 4)
    one = oracle(gdn, x)
    torch.testing.assert_close(oracle(kda, {**x, "g": wide}), one)
    del x["beta"]
    rate = torch.rand(2, 9, 2, 1, dtype=torch.float64)
    scaled = {**x, "g": wide, "a": -rate * x["k"], "v": rate * x["v"]}
    torch.testing.assert_close(oracle(gdn2, scaled), oracle(kda, {**x, "g": wide, "beta": rate[..., 0]}))
    still = {**x, "g": wide, "a": 0 * x["k"], "b": x["k"]}
    torch.testing.assert_close(oracle(rwkv7, still), 2 * oracle(gla, {**x, "g": wide}))


def test_log_decays_keep_their_precision() -> None:
    plan = sparsec.compile(sparsec.preset("kda"), target="interpreter").plan(
        {"B": 1, "T": 8, "H": 2, "HKV": 2, "D": 16, "DV": 16}, "bfloat16"
    )
    scan = next(kernel.spec for kernel in plan.kernels if kernel.name.startswith("scan"))
    assert scan.writes.decay.dtype == scan.writes.beta.dtype == "float32"  # type: ignore[union-attr]
    assert scan.writes.k == Operand("k", "bfloat16", unit=True) and scan.writes.v.dtype == "bfloat16"  # type: ignore[union-attr]


STEPS = (4, 1, 1, 2, 1)
"""A prefill, then one or two tokens at a time."""


@pytest.mark.parametrize("name", ["gdn", "kda", "rwkv7", "mamba2"])
def test_a_prefill_and_steps_from_its_states_are_one_forward(name: str) -> None:
    stepped = sparsec.compile(sparsec.preset(name, raw=True, initial=True, final=True), target="interpreter")
    x = sparsec.inputs(stepped.variant, B=2, T=sum(STEPS), H=2, HKV=1, D=16, DV=8)
    whole, last = stepped(**x)
    state, outputs = x.pop("m"), []
    for tokens in zip(*(y.split(STEPS, dim=1) for y in x.values()), strict=True):
        out, state = stepped(**dict(zip(x, tokens, strict=True)), m=state)
        outputs.append(out)
    torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=0, atol=0)
    torch.testing.assert_close(state, last, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["gdn", "kda", "mamba2"])
def test_states_that_share_a_key_are_states_with_keys_repeated(name: str) -> None:
    few, many = (sparsec.preset(name, raw=True, **more) for more in ({"shared": "keys"}, {}))
    x = sparsec.inputs(few, B=2, T=9, H=2, HV=4, D=16, DV=8)
    assert wrong_on(sparsec.compile(few, target="interpreter"), x, "float32") == []
    repeated = {n: y.repeat_interleave(2, dim=2) if n in ("q", "k") else y for n, y in x.items()}
    torch.testing.assert_close(oracle(few, x), oracle(many, repeated))
    with pytest.raises(InputError, match="HV must be divisible by H"):
        sparsec.inputs(few, H=2, HV=3)


def test_a_forget_gate_lies_below_one() -> None:
    with pytest.raises(DeclarationError, match=r"lower = 2\.0.*between it and 1"):
        preset("hgrn2", lower=2.0)


@pytest.mark.parametrize("logit", [-13.0, -7.0, -4.0, 5.0])
def test_small_steps_keep_their_digits(logit: float) -> None:
    """softplus(x) is about exp(x) there, which 1 + exp(x) would have lost in fp32."""
    made = preset("mamba2")
    x = sparsec.inputs(made, B=1, T=9, H=1, HKV=1, D=16, DV=16)
    x |= {"dt": torch.full_like(x["dt"], logit), "dt_bias": torch.zeros_like(x["dt_bias"])}
    want, found = oracle(made, x), compile(made, target="interpreter")(**x)
    assert isinstance(want, torch.Tensor) and isinstance(found, torch.Tensor)
    assert float((found - want).norm() / want.norm()) < 5e-6
