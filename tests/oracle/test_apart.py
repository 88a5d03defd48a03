"""Gradients through loops over tokens: work for every token, not for every pair of them."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch

import sparsec
from sparsec.oracle import oracle
from sparsec.oracle.apart import apart


def test_entries_and_their_gradients_are_those_of_indices() -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    entries = [(i, j, apart(x, 2)[i][j]) for i in range(2) for j in range(3)]
    assert all(torch.equal(entry, x[i, j]) for i, j, entry in entries)
    kept = [entry for i, j, entry in entries if i < j]
    (found,) = torch.autograd.grad(sum(entry.square().sum() for entry in kept), x)
    assert torch.equal(found, torch.stack([2 * x[i, j] * (i < j) for i in range(2) for j in range(3)]).view(2, 3, 4))


def zeros(name: str, knobs: dict[str, object], **sizes: Any) -> int:
    """How many zeros autograd makes for indices that it goes back through."""
    variant = sparsec.preset(name, raw=True, **knobs)
    drawn = sparsec.inputs(variant, B=1, H=1, HKV=1, D=2, DV=2, **sizes)
    leaves = {n: x.double().requires_grad_() if x.is_floating_point() else x for n, x in drawn.items()}
    out = oracle(variant, leaves, form="vector")
    left, seen = [(out if isinstance(out, torch.Tensor) else out[0]).grad_fn], set[Any]()
    while left:
        if (node := left.pop()) is not None and node not in seen:
            seen.add(node)
            left += [after for after, _ in node.next_functions]
    return sum(prod(node._saved_self_sym_sizes) for node in seen if node.name() == "SelectBackward0")


@pytest.mark.parametrize(("name", "knobs", "dim"), [("rsa", {"levels": 2}, "DX"), ("gsa", {}, "M")])
def test_twice_the_tokens_are_twice_the_work(name: str, knobs: dict[str, object], dim: str) -> None:
    assert zeros(name, knobs, T=24, **{dim: 2}) <= 2 * zeros(name, knobs, T=12, **{dim: 2})
