"""How exact a loss is whose scores are near the attention they learn from."""

from __future__ import annotations

import pytest
from torch import Tensor

import sparsec
from sparsec.oracle import oracle

TEXT = """
variant near(q: [B, T, H, D], k: [B, T, HKV, D], v: [B, T, HKV, DV], qi: [B, T, HKV, DI], ki: [B, T, HKV, DI]) {
  memory = tokens(k, v) {chunk = 16}
  marks = summary(tokens(ki, ki) {chunk = 16}) {size = 16, stride = 16}
  scores = score(qi, marks)
  chosen = topk(scores) {k = 3, size = 16, eligible = 16 * c + 15 <= i, selector_gradient = kl}
  o = attend(q, memory, chosen)
  return o, aux(scores, chosen, target=o) {fn = kl}
}"""


@pytest.mark.parametrize("spread", [1.0, 0.2])
def test_a_small_divergence_is_no_difference_of_large_terms(spread: float) -> None:
    """Off by 2e-5 of itself and more where logarithms cancel."""
    variant = sparsec.parse(TEXT)
    x = sparsec.inputs(variant, dtype="float32", seed=3, T=160, H=4, HKV=2, D=16, DV=16, DI=16, B=1)
    x = {name: t * spread for name, t in x.items()}
    got, want = sparsec.compile(variant, target="interpreter")(**x)[1], oracle(variant, x, form="vector")
    assert isinstance(want, tuple) and isinstance(got, Tensor)
    assert float(want[1].max()) > 0.0
    assert float((got - want[1]).norm() / want[1].norm()) < 1e-6 / spread**2
