"""Queries and keys that are softmaxes of their rows: their gradients lose a mean, so little else may be lost before."""

import torch

import sparsec
from sparsec.testing.whole.trained import oracle_gradients

FEATURES = """variant features(
  q: [B, T, H, D], k: [B, T, HKV, D], v: [B, T, HKV, DV], b: [B, T, HKV], g: [B, T, HKV] float32
) {
  asked = map(q) {fn = x0, row = softmax}
  s = state() {heads = HKV, rows = D, cols = DV, schedule = single}
  place = map(k) {fn = x0, row = softmax}
  beta = map(b) {fn = sigmoid(x0)}
  m = write(s, place, v, beta=beta, decay=g) {rule = delta, decay_kind = scalar, reads = decayed}
  out = recall(asked, m) {mode = sum, when = after, scale = rsqrt(D)}
  return out
}"""


def test_gradients_through_row_softmaxes_in_half_precision() -> None:
    """Of queries and keys, where all values have a mean: 2.8e-3 and 2.6e-3; 7.1e-3 and 3.4e-3 where what the
    softmaxes are given of them was rounded."""
    variant = sparsec.parse(FEATURES)
    x = sparsec.inputs(variant, dtype="bfloat16", B=1, T=200, H=2, HKV=2, D=64, DV=64)
    x["v"] = x["v"] + 3
    leaves = {n: t.requires_grad_() for n, t in x.items()}
    out = sparsec.compile(variant, "interpreter")(**leaves)
    assert isinstance(out, torch.Tensor)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    found = dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), weight), strict=True))
    truth = oracle_gradients(variant, {n: t.detach() for n, t in leaves.items()}, weight)
    errors = {n: float((found[n].double() - truth[n].double()).norm() / truth[n].double().norm()) for n in ("q", "k")}
    assert max(errors.values()) < 4e-3, errors
