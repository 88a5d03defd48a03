"""Maps on the GPU that is here: outputs and gradients against the oracle, at tiles of real sizes."""

from __future__ import annotations

from typing import Any

import pytest

from sparsec.frontends.text import parse
from sparsec.runtime.compiled import compile
from sparsec.runtime.inputs import inputs
from sparsec.testing.whole.trained import wrong_on

pytestmark = pytest.mark.gpu

SIZES: dict[str, Any] = {"B": 2, "T": 1500, "H": 4, "HKV": 2, "D": 128, "DV": 96}
VARIANTS = {
    "unit length": """variant x(q: [B,T,H,D], k: [B,T,HKV,D], v: [B,T,HKV,DV], w: [H,1] float32, z: [B,T,H,DV]) {
      m = tokens(map(k) {row = l2norm}, v)
      u = map(map(q) {row = l2norm}, w) {fn = x0 * x1}
      o = attend(u, m, mask(m) {where = (j <= i) & (j > i - 256)}) {scale = 1.0}
      return map(o, z) {fn = x0 * x1 * sigmoid(x1)}
    }""",
    "decays": """variant x(x: [B,T,H], a: [H] float32, dt: [H] float32) {
      return map(a, x, dt) {fn = -exp(x0) * log(1.0 + exp(x1 + x2))}
    }""",
    "affine": """variant x(x: [B,T,H,D], w: [D], b: [H,D]) {
      return map(x, w, b) {fn = x0 * x1 + x2}
    }""",
    "features": """variant x(x: [B,T,H,D]) {
      return map(x) {row = softmax}
    }""",
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("name", VARIANTS)
def test_maps_are_the_oracles(name: str, dtype: str) -> None:
    variant = parse(VARIANTS[name])
    used = {str(dim) for node in variant.parameters for dim in node.shape}
    given = inputs(variant, dtype=dtype, device="cuda", **{n: s for n, s in SIZES.items() if n in used})
    assert wrong_on(compile(variant, target="cuda"), given, dtype) == []
