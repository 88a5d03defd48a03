"""Levels that begin or end outside the call, or that no chunk form has: outputs, last levels and all gradients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsec
from sparsec.frontends.text import parse
from sparsec.ir.variant import Variant
from sparsec.lower.registry import default
from sparsec.passes.differentiate import differentiate
from sparsec.plan.states.fenwick_specs import Ladder, LadderGrad
from sparsec.runtime.kernel import BuiltKernel
from sparsec.runtime.target import INTERPRETER
from sparsec.testing.inputs.recurrent import draw
from sparsec.testing.whole.chain import poisoned
from sparsec.testing.whole.trained import wrong_on

SIZES: dict[str, Any] = {"B": 2, "T": 11, "H": 2, "HKV": 1, "D": 16, "DV": 24}
RULES = {
    "additive": ("", "{decay_kind = scalar}"),
    "delta": (", beta=beta", "{rule = delta, decay_kind = scalar}"),
    "undecayed": (", beta=beta", "{rule = delta, decay_kind = scalar, reads = undecayed}"),
    "a decay per channel": (", beta=beta", "{rule = delta, decay_kind = key}"),
    "erase vectors": (", beta=beta, erase_a=a, erase_b=b", "{rule = delta, decay_kind = key, reads = undecayed}"),
}


def levels(rule: str, initial: bool = True, final: bool = True, count: int = 6) -> Variant:
    """A declaration of levels."""
    brought, how = RULES[rule]
    names = {"beta": "[B,T,HKV]", "a": "[B,T,HKV,D]", "b": "[B,T,HKV,D]"}
    more = [f"{n}: {names[n]}" for n in names if f"={n}," in f"{brought},"]
    more += [f"m: [B,{count},HKV,D,DV] float32"] if initial else []
    width = "[B,T,HKV,D]" if "key" in how else "[B,T,HKV]"
    return parse(f"""variant levels(q: [B,T,H,D], k: [B,T,HKV,D], v: [B,T,HKV,DV], g: {width} float32,
                                    lam: [B,T,H,{count}] float32{"".join(f", {x}" for x in more)}) {{
      s = write(state({"m" if initial else ""}) {{parts = {count}, schedule = fenwick}}, k, v, decay=g{brought}) {how}
      return recall(q, s, level_gate=lam) {{scale = rsqrt(D)}}{", s" if final else ""}
    }}""")


@pytest.mark.parametrize("target", ["interpreter", "tvm:llvm"])
@pytest.mark.parametrize("rule", RULES)
def test_outputs_and_gradients(rule: str, target: str) -> None:
    """From positions in the middle of blocks: levels of bits that the position lacks are empty, whatever they hold."""
    made = sparsec.compile(levels(rule), target=target)
    assert wrong_on(made, draw(made.variant, SIZES), "float32", q_offset=13) == []


@pytest.mark.parametrize("offset", [0, 8, 20])
@pytest.mark.parametrize(("initial", "final"), [(True, False), (False, True), (True, True)])
def test_one_end_or_both(initial: bool, final: bool, offset: int) -> None:
    made = sparsec.compile(levels("delta", initial, final), target="interpreter")
    begins = offset if initial else 0
    assert wrong_on(made, draw(made.variant, SIZES), "float32", q_offset=begins) == []


@pytest.mark.parametrize("rule", ["undecayed", "a decay per channel", "erase vectors"])
def test_rules_without_chunks_learn(rule: str) -> None:
    made = sparsec.compile(levels(rule, False, False), target="interpreter")
    assert wrong_on(made, draw(made.variant, SIZES), "float32") == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str) -> None:
    made = sparsec.compile(levels("delta"), target="interpreter")
    x = draw(made.variant, SIZES | {"T": 27}, getattr(torch, dtype))
    assert wrong_on(made, x, dtype, q_offset=4) == []


def pulled(outputs: Sequence[torch.Tensor], x: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    total = sum((o.double() * torch.randn(o.shape, generator=generator)).sum() for o in outputs)
    assert isinstance(total, torch.Tensor)
    return list(torch.autograd.grad(total, list(x.values())))


@pytest.mark.parametrize("cut", [1, 8, 13])
def test_two_calls_are_one(cut: int) -> None:
    """Outputs, last levels and gradients through what the first call hands the second, under torch's autograd."""
    whole = sparsec.compile(sparsec.preset("log_linear", rule="delta", levels=6, final=True), target="interpreter")
    onward = sparsec.preset("log_linear", rule="delta", levels=6, initial=True, final=True)
    second, x = sparsec.compile(onward, target="interpreter"), sparsec.inputs(whole.variant, **SIZES | {"T": 21})
    x = {n: y.requires_grad_() for n, y in x.items()}
    one: Any = whole(**x)
    o, held = whole(**{n: y[:, :cut] for n, y in x.items()})
    rest, last = second(q_offset=cut, **{n: y[:, cut:] for n, y in x.items()}, m=held)
    two: Any = torch.cat([o, rest], 1), last
    for mine, right in zip([*two, *pulled(two, x)], [*one, *pulled(one, x)], strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-5)


def test_a_gpus_schedule_makes_the_same(tmp_path: Path) -> None:
    """Programs of a few columns each add up what they share."""
    made = sparsec.compile(differentiate(levels("erase vectors")).variant, target="interpreter")
    x = draw(made.variant, SIZES | {"T": 26})
    dims, dtype = made.bind(x, 5)
    plan = made.plan(dims, dtype)
    runs = [poisoned(plan, x, dims) for _ in range(2)]
    for kernel in plan.kernels:
        for target, buffers in zip(("interpreter", "triton:sm_90"), runs, strict=True):
            ladder = isinstance(kernel.spec, Ladder | LadderGrad)
            chosen = default(kernel.spec, target)
            own = BuiltKernel(kernel, chosen, INTERPRETER, tmp_path) if ladder else made.built(kernel, dims)
            own.run(buffers, dims)
    for buffer in (b for b in plan.buffers if b.role != "input"):
        torch.testing.assert_close(runs[0][buffer.name], runs[1][buffer.name], rtol=1e-4, atol=1e-5, msg=buffer.name)
