"""Everything that a variant returns counts: a second output that is wrong, or a list, is a wrong result."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.autotune.job.judge import judged, numbers, worst
from sparsec.ir.variant import Variant
from sparsec.oracle import oracle
from sparsec.runtime.compiled import compile

BOTH = """variant both(q: [B,T,H,D], k: [B,T,HKV,D], v: [B,T,HKV,D]) {
  m = tokens(k, v) {chunk = 8}
  marks = summary(m) {fn = mean, size = 8, stride = 8, fields = k}
  chosen = topk(reduce(score(q, marks)) {over = group, op = max}) {k = 2, size = 8, eligible = 8 * c <= i}
  o = attend(q, m, chosen, mask(m) {where = j <= i})
  return o, lse(o), chosen
}"""


def results(variant: Variant) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """Inputs and the outputs by the oracle."""
    inputs = sparsec.inputs(variant, T=40, H=2, HKV=1, D=16)
    truths = oracle(variant, inputs, form="vector")
    assert isinstance(truths, tuple)
    return inputs, truths


def test_right_outputs_are_right() -> None:
    variant = sparsec.parse(BOTH)
    inputs, truths = results(variant)
    compiled = compile(variant, "interpreter")
    dims, dtype = compiled.bind(inputs)
    found = judged(compiled, compiled.plan(dims, dtype), inputs, dims, truths)
    assert found.ok and 0 < found.tensor < 1e-5


@pytest.mark.parametrize("position", [0, 1])
def test_every_number_counts(position: int) -> None:
    variant = sparsec.parse(BOTH)
    _, truths = results(variant)
    outputs = [x.clone() for x in truths]
    assert worst(numbers(variant, outputs, truths, "float32")).ok
    outputs[position][0, 7, 0] += 1
    assert not worst(numbers(variant, outputs, truths, "float32")).ok


def test_lists_count(monkeypatch: pytest.MonkeyPatch) -> None:
    variant = sparsec.parse(BOTH)
    inputs, truths = results(variant)
    compiled = compile(variant, "interpreter")
    dims, dtype = compiled.bind(inputs)
    plan, run = compiled.plan(dims, dtype), compiled.run_plan

    def spoiled(*args: object) -> dict[str, Tensor]:
        buffers = run(*args)  # type: ignore[arg-type]
        ids = buffers[plan.outputs[2]]
        return {**buffers, plan.outputs[2]: torch.where(ids == ids.max(), -1, ids)}

    monkeypatch.setattr(compiled, "run_plan", spoiled)
    assert not judged(compiled, plan, inputs, dims, truths).ok
