"""Log-linear attention compiled: outputs and gradients as the oracle's, dense and packed."""

from __future__ import annotations

import pytest
import torch

import sparsec
from sparsec.frontends.recurrent import keys, log_decays, queries, rates, values
from sparsec.ir import build as lang
from sparsec.ir.build_state import recall, state, write
from sparsec.ir.error import InputError
from sparsec.ir.variant import variant
from sparsec.oracle import check, oracle
from sparsec.testing.whole.packed import (
    cotangents_like,
    floats,
    gradients,
    looped,
    looped_gradients,
    packed_case,
    results,
)
from sparsec.testing.whole.trained import wrong_on

RULES = ["additive", "delta"]
LENGTHS = (70, 0, 5, 104)


def truth(of: sparsec.Variant, x: dict[str, torch.Tensor]) -> torch.Tensor:
    """The only output in fp64."""
    found = oracle(of, x)
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize("target", ["interpreter", "tvm"])
@pytest.mark.parametrize("rule", RULES)
def test_outputs_and_gradients(rule: str, target: str) -> None:
    made = sparsec.preset("log_linear", rule=rule, levels=8, raw=target == "tvm")
    drawn = sparsec.inputs(made, B=2, T=70, H=2, HKV=2, D=16, DV=24)
    assert wrong_on(sparsec.compile(made, target=target), drawn, "float32") == []


@pytest.mark.parametrize("rule", RULES)
def test_packed_documents_begin_anew(rule: str) -> None:
    """Lengths of all documents together would need a level more than the longest has."""
    call = sparsec.compile(sparsec.preset("log_linear", rule=rule, levels=8, raw=True), target="interpreter")
    packed = packed_case(call.variant, LENGTHS, LENGTHS, H=2)
    found = results(call, **packed.packed, **packed.ends)
    cotangents, want = cotangents_like(found), looped(call, packed)
    torch.testing.assert_close(found[0], want[0], rtol=0, atol=0)
    made = gradients(call, packed, floats(call.variant), cotangents)
    for name, x in looped_gradients(call, packed, floats(call.variant), cotangents).items():
        torch.testing.assert_close(made[name], x, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("target", ["interpreter", "tvm"])
def test_a_prompt_and_steps_are_one_forward(target: str) -> None:
    call = sparsec.compile(sparsec.preset("log_linear", rule="delta", levels=6, raw=True), target=target)
    x = sparsec.inputs(call.variant, B=2, T=23, H=4, HKV=2, D=16, DV=8)
    cache, pieces = call.init_cache(batch=2), (9, 1, 1, 2, 10)
    parts = zip(*(y.split(pieces, dim=1) for y in x.values()), strict=True)
    found = [results(call.decode, cache=cache, **dict(zip(x, part, strict=True)))[0] for part in parts]
    whole = torch.cat(found, 1)
    torch.testing.assert_close(whole, results(call, **x)[0], rtol=0, atol=1e-6)
    assert check(whole, truth(call.variant, x), "float32")
    with pytest.raises(InputError, match=r"max_length = 33.*6 levels"):
        call.init_cache(batch=2, max_length=33)


def test_levels_go_on_where_others_ended() -> None:
    """First and last levels as an input and an output, from a position that q_offset gives."""
    levels = state(lang.input("m", "B 6 HKV D DV float32"), parts=6, schedule="fenwick")
    written = write(levels, keys(), values(), rule="delta", beta=rates(), decay=log_decays())
    made = variant("going_on", (recall(queries(), written, level_gate=lang.input("lam", "B T H 6 float32")), written))
    call = sparsec.compile(made, target="interpreter")
    x = sparsec.inputs(made, B=1, T=20, H=2, HKV=2, D=16, DV=8)
    first, rest = ({n: y[:, part] for n, y in x.items() if n != "m"} for part in (slice(0, 13), slice(13, 20)))
    nothing = torch.zeros_like(x["m"])
    begun = results(call, **first, m=nothing)
    whole, ended = results(call, **{**x, "m": nothing}), results(call, q_offset=13, **rest, m=begun[1])
    torch.testing.assert_close(torch.cat([begun[0], ended[0]], 1), whole[0], rtol=0, atol=0)
    torch.testing.assert_close(ended[1], whole[1], rtol=0, atol=0)
    want = oracle(made, {**rest, "m": begun[1]}, q_offset=13)
    assert isinstance(want, tuple)
    for mine, right in zip(ended, want, strict=True):
        assert check(mine, right, "float32")
    assert wrong_on(call, {**rest, "m": begun[1]}, "float32", q_offset=13) == []


@pytest.mark.parametrize(("rule", "heads"), [("additive", 1), ("delta", 2)])
def test_heads_that_share_states(rule: str, heads: int) -> None:
    """Outputs go token by token; gradients in chunks, with a state for every query head."""
    variant = sparsec.preset("log_linear", rule=rule, levels=6)
    x = sparsec.inputs(variant, B=1, T=20, H=2 * heads, HKV=heads, D=16, DV=8)
    assert wrong_on(sparsec.compile(variant, target="interpreter"), x, "float32") == []


def test_states_that_share_keys() -> None:
    """More value heads than key heads: queries and keys have two heads, states four."""
    q, k, lam = queries(), keys("H"), lang.input("lam", "B T HV 6 float32")
    levels = state(parts=6, schedule="fenwick", heads="HV")
    written = write(levels, k, values("HV"), rule="delta", beta=rates(heads="HV"), decay=log_decays(heads="HV"))
    made = variant("sharing", recall(q, written, level_gate=lam))
    x = sparsec.inputs(made, B=1, T=20, H=2, HV=4, D=16, DV=8)
    assert wrong_on(sparsec.compile(made, target="interpreter"), x, "float32") == []


def test_a_snapshot_takes_the_place_on_the_ladder_along() -> None:
    """What was decoded across a carry is decoded again after a restore, to the last bit."""
    made = sparsec.compile(sparsec.preset("log_linear", rule="delta", levels=6, raw=True), target="interpreter")
    x = sparsec.inputs(made.variant, dtype="float32", device="cpu", seed=0, B=2, T=14, H=2, HKV=2, D=8, DV=8)
    cache = made.init_cache(batch=2)
    made.decode(cache, **{name: y[:, :9] for name, y in x.items()})
    before, rest = cache.snapshot(), {name: y[:, 9:] for name, y in x.items()}
    first = made.decode(cache, **rest)
    cache.restore(before)
    torch.testing.assert_close(made.decode(cache, **rest), first, rtol=0, atol=0)
