"""Gradients of packed documents: what they must agree with is each document by itself, through the oracle."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

import sparsec
from sparsec.ir.variant import Variant
from sparsec.testing.whole.trained import oracle_gradients


def packed_agrees(variant: Variant) -> None:
    """Gradients of a packed batch are those of each document: documents of 37, 1 and 52 tokens."""
    ends = [0, 37, 38, 90]
    x = sparsec.inputs(variant, seed=3, TQ=90, TK=90, H=4, HKV=2, D=16, DV=16, B=1)
    leaves = {name: t[0].clone().requires_grad_() for name, t in x.items()}
    compiled = sparsec.compile(variant, target="interpreter")
    out = compiled(cu_seqlens=torch.tensor(ends, dtype=torch.int32), **leaves)
    assert isinstance(out, Tensor)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(5))
    out.backward(weight)
    for a, b in pairwise(ends):
        want = oracle_gradients(variant, {n: t[:, a:b] for n, t in x.items()}, weight[None, a:b])
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            torch.testing.assert_close(leaf.grad[None, a:b].double(), want[name], rtol=1e-4, atol=1e-5)
