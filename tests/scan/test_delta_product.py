"""Several writes per token: their programs are those of one write, read where tokens lie, in every loop order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.backends.triton.descriptors import descriptors
from sparsec.frontends.text import parse
from sparsec.ir.error import DeclarationError, InputError
from sparsec.ir.variant import dim_names
from sparsec.lower.registry import default, lower_kernel
from sparsec.oracle import oracle
from sparsec.testing.whole.trained import wrong_on
from sparsec.tile.schedule import Schedule

SIZES: dict[str, Any] = {"B": 2, "H": 2, "HKV": 1, "D": 16, "DV": 8}
RULES = {
    "a read before the write": """variant before(q: [B,T,H,D], p: [B,T,H,D], k: [B,T,2*HKV,D], v: [B,T,2*HKV,DV],
                                                 g: [B,T,HKV,D] float32) {
      s = write(state(), k, v, decay=g) {decay_kind = key, rule = delta, steps = 2, reads = undecayed}
      return recall(q, s), recall(p, s) {when = before}
    }""",
    "erase vectors": """variant erases(q: [B,T,H,D], k: [B,T,3*HKV,D], v: [B,T,3*HKV,DV], a: [B,T,3*HKV,D],
                                       b: [B,T,3*HKV,D], g: [B,T,HKV] float32) {
      s = write(state(), k, v, decay=g, erase_a=a, erase_b=b) {decay_kind = scalar, rule = delta, steps = 3}
      return recall(q, s), s
    }""",
}


@pytest.mark.parametrize("knobs", [{}, {"raw": True, "initial": True, "final": True, "steps": 3}, {"gated": False}])
def test_outputs_and_gradients(knobs: dict[str, object]) -> None:
    made = sparsec.preset("delta_product", **knobs)
    x = sparsec.inputs(made, **{n: size for n, size in SIZES.items() if n in dim_names(made)}, T=9)
    assert wrong_on(sparsec.compile(made, target="interpreter"), x, "float32") == []


@pytest.mark.parametrize("rule", RULES)
def test_every_rule(rule: str) -> None:
    made = parse(RULES[rule])
    x = {n: t / 4 if n in "kab" else t for n, t in sparsec.inputs(made, T=9, **SIZES).items()}
    for one, other in zip(oracle(made, x, form="loop"), oracle(made, x, form="vector"), strict=True):
        torch.testing.assert_close(one, other)
    assert wrong_on(sparsec.compile(made, target="interpreter"), x, "float32") == []


def test_in_chunks() -> None:
    made = sparsec.compile(sparsec.preset("delta_product", raw=True, initial=True, final=True), target="interpreter")
    x = sparsec.inputs(made.variant, dtype="bfloat16", T=21, **SIZES | {"H": 1, "DV": 16})
    chunks = Schedule(order="chunk", rows=16, value_block=16, splits=2)
    dims, dtype = made.bind(x)
    halves = made.training.joint(dims, dtype, tuple(x)).split
    made.schedules = {k.name: chunks for half in (halves.forward, halves.backward) for k in half.kernels}
    assert wrong_on(made, x, "bfloat16") == []


CHUNKS = """
import json, torch, sparsec
from sparsec.backends.triton.descriptors import descriptors
from sparsec.passes.differentiate import differentiate
from sparsec.runtime.across import programs
from sparsec.runtime.compiled import compile
from sparsec.testing.whole.chain import links
from sparsec.tile.schedule import Schedule
joint = differentiate(sparsec.preset("delta_product", raw=True, initial=True, final=True)).variant
made = compile(joint, target="triton:sm_90")
x = sparsec.inputs(joint, T=21, B=2, H=1, HKV=1, D=16, DV=16)
chunks = Schedule(order="chunk", rows=16, value_block=16, splits=2, descriptors=True)
dims, dtype = made.bind(x, None)
plan = made.plan(dims, dtype)
made.schedules = {k.name: chunks for k in plan.kernels}
steps = [s for low in programs(made, plan, dims)[1].values() for s in low.steps]
boxes = sum(len({d.name for d in descriptors(s.program, s.schedule.descriptors).values()}) for s in steps)
print(json.dumps([boxes, [link.sentence for link in links(made, x) if not link.ok]]))
"""


@pytest.mark.slow
def test_chunks_by_descriptors_interpreted_by_triton() -> None:
    """What lies chunk by chunk goes through descriptors; what lies per token of several steps is read by pointers."""
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", CHUNKS], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    boxes, wrong = json.loads(done.stdout.splitlines()[-1])
    assert boxes > 4 and wrong == []


def test_by_default_scratch_goes_through_descriptors_on_hopper() -> None:
    """Of the programs of one step per token that an H100 has timed, those by pointers spill more."""
    made = sparsec.compile(sparsec.preset("delta_product"), target="triton:sm_90")
    kernel = made.plan({"H": 16, "HKV": 16, "D": 128, "DV": 128}, "bfloat16").kernels[-1]
    schedule = default(kernel.spec, "triton:sm_90")
    assert schedule.order == "chunk" and schedule.descriptors
    last = lower_kernel(kernel.spec, schedule).steps[-1]
    named = {d.tensor.name for d in descriptors(last.program, last.schedule.descriptors).values()}
    assert named and not named & {*made.variant.inputs}


def test_one_step_is_gated_delta_and_none_turns_back() -> None:
    """Of one step: Gated DeltaNet. Of two with the same key, the second at rate 1 leaves its own value there."""
    one, two = (sparsec.preset("delta_product", raw=True, steps=n) for n in (1, 2))
    gdn = sparsec.preset("gdn", raw=True)
    x = {n: t.double() for n, t in sparsec.inputs(gdn, T=9, **SIZES).items()}
    torch.testing.assert_close(oracle(one, x), oracle(gdn, x))
    key = torch.nn.functional.normalize(torch.randn(2, 9, 1, 16, dtype=torch.float64), dim=-1)
    last = torch.randn(2, 9, 1, 8, dtype=torch.float64)
    first = torch.randn(2, 9, 1, 8, dtype=torch.float64)
    pair = {"k": key.repeat(1, 1, 2, 1), "v": torch.cat([first, last], 2), "beta": torch.ones(2, 9, 2).double()}
    alone = {"k": key, "v": last, "beta": torch.ones(2, 9, 1).double()}
    torch.testing.assert_close(oracle(two, {**x, **pair}), oracle(gdn, {**x, **alone}))


def test_a_decode_step_keeps_its_state_in_place() -> None:
    made = sparsec.compile(sparsec.preset("delta_product", steps=2), target="interpreter")
    x = sparsec.inputs(made.variant, T=9, **SIZES)
    whole, cache, found = made(**x), made.init_cache(2, deterministic=True), list[Tensor]()
    for tokens in zip(*(t.split([5, 1, 2, 1], dim=1) for t in x.values()), strict=True):
        step = made.decode(cache, **dict(zip(x, tokens, strict=True)))
        assert isinstance(step, Tensor)
        found.append(step)
    assert isinstance(whole, Tensor) and torch.equal(torch.cat(found, 1), whole)
    assert all(len(kept.in_place) == 1 for kept in made.decoder.kept())


@pytest.mark.parametrize(("batch", "length"), [(2, 0), (0, 3)])
@pytest.mark.parametrize("form", ["loop", "vector"])
def test_an_oracle_of_nothing(batch: int, length: int, form: Literal["loop", "vector"]) -> None:
    made = sparsec.preset("delta_product", raw=True, final=True)
    found = oracle(made, sparsec.inputs(made, T=length, **SIZES | {"B": batch}), form=form)
    assert [tuple(x.shape) for x in found] == [(batch, length, 2, 8), (batch, 1, 1, 16, 8)]


def test_refusals() -> None:
    made = sparsec.preset("delta_product", raw=True, steps=3)
    x = sparsec.inputs(made, T=9, **SIZES)
    with pytest.raises(InputError, match=r"dim of 4.*3 \* HKV is 3"):
        sparsec.compile(made, target="interpreter")(**x | {"k": torch.cat([x["k"], x["k"][:, :, :1]], 2)})
    head = "variant v(q: [B,T,H,D], k: [B,T,2*HKV,D], v: [B,T,2*HKV,DV], g: [B,T,HKV] float32)"
    written = "s = write(state(), k, v, decay=g) {decay_kind = scalar, rule = delta, steps = 2}"
    with pytest.raises(DeclarationError, match=r"steps = 2.*no one prediction"):
        parse(f"{head} {{ {written}\n return surprise(s) }}")


def test_a_first_decay_fades_nothing() -> None:
    """Its gradient is 0 in the kernels and in the quick form of the oracle, not the rest of terms that cancel."""
    made = sparsec.compile(sparsec.preset("delta_product", steps=4), target="interpreter")
    assert not wrong_on(made, sparsec.inputs(made.variant, T=1, B=2, H=2, HKV=1, D=16, DV=16), "float32")
