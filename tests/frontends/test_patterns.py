"""Sparsity patterns against their definitions, pair by pair."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import sparsec
from sparsec.frontends import patterns
from sparsec.ir.op import Op
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import Expr
from sparsec.scalar.random import random_block

LENGTH = 90
Pair = Callable[[int, int], bool]

DEFINITIONS: dict[str, tuple[Expr, Pair]] = {
    "window": (patterns.window(7), lambda t, j: t - j < 7),
    "first": (patterns.first(5), lambda t, j: j < 5),
    "first none": (patterns.first(0), lambda t, j: False),
    "dilated": (patterns.dilated(4, 3), lambda t, j: t - j in {0, 3, 6, 9}),
    "strided": (patterns.strided(8), lambda t, j: t - j < 8 or (t - j) % 8 == 0),
    "log_sparse": (patterns.log_sparse(), lambda t, j: t - j in {0, 1, 2, 4, 8, 16, 32, 64}),
}


def visible(where: Expr, head: int = 0, length: int = LENGTH) -> set[tuple[int, int]]:
    """The pairs that a predicate admits."""
    at = torch.arange(length)
    seen = evaluate(where, {"b": 0, "h": head, "i": at[:, None], "j": at, "TK": length})
    pairs = torch.as_tensor(seen).expand(length, length).nonzero().tolist()
    return {(i, j) for i, j in pairs}


def mask_of(name: str, **knobs: object) -> Expr:
    """The predicate of a preset's first mask."""
    where = next(node for node in sparsec.preset(name, **knobs).nodes if node.op is Op.MASK).expr("where")
    assert where is not None
    return where


@pytest.mark.parametrize("name", DEFINITIONS)
def test_patterns(name: str) -> None:
    where, defined = DEFINITIONS[name]
    assert visible(where) == {(t, j) for t in range(LENGTH) for j in range(t + 1) if defined(t, j)}


def test_streaming_keeps_sinks_and_window() -> None:
    where = mask_of("streaming", window=10, sinks=3)
    assert visible(where) == {(t, j) for t in range(LENGTH) for j in range(t + 1) if j < 3 or t - j < 10}


def test_a_union_of_patterns_with_sinks() -> None:
    where = mask_of("msa", pattern="log_sparse+global", global_tokens=4, sinks=6)
    assert visible(where) == visible(patterns.log_sparse()) | visible(patterns.first(6))


@pytest.mark.parametrize("head", [0, 3])
def test_bigbird(head: int) -> None:
    def seen(t: int, j: int) -> bool:
        own, block = t // 8, j // 8
        return own - block < 3 or block < 2 or block in drawn[own]

    drawn = [{evaluate(random_block(5, head, own, n, own), {}) for n in range(2)} for own in range(LENGTH // 8 + 1)]
    where = mask_of("bigbird", block=8, random_blocks=2, seed=5)
    assert visible(where, head) == {(t, j) for t in range(LENGTH) for j in range(t + 1) if seen(t, j)}


def test_bigbird_draws_differ_by_head_and_seed() -> None:
    first, other = (visible(mask_of("bigbird", block=4, seed=seed)) for seed in (0, 1))
    assert first != other
    assert first != visible(mask_of("bigbird", block=4), head=1)


def test_bigbird_in_both_directions() -> None:
    where = mask_of("bigbird", block=8, random_blocks=0, causal=False)
    near = {(t, j) for t in range(LENGTH) for j in range(LENGTH) if abs(t // 8 - j // 8) <= 1 or min(t, j) < 16}
    assert visible(where) == near
    drawn = mask_of("bigbird", block=8, window_blocks=1, global_blocks=0, random_blocks=2, causal=False)
    assert any(j // 8 > t // 8 for t, j in visible(drawn))


def test_longformer_dilates_some_heads() -> None:
    where = mask_of("longformer", window=6, dilation=2, dilated_heads=1, global_tokens=2)
    near = {(t, j) for t in range(LENGTH) for j in range(t + 1) if t - j < 6 or j < 2}
    far = {(t, j) for t in range(LENGTH) for j in range(t + 1) if t - j in {0, 2, 4, 6, 8, 10} or j < 2}
    assert (visible(where, 0), visible(where, 1)) == (far, near)


def test_longformer_in_both_directions() -> None:
    where = mask_of("longformer", window=6, global_tokens=2, causal=False)
    pairs = {(t, j) for t in range(LENGTH) for j in range(LENGTH) if abs(t - j) <= 3 or min(t, j) < 2}
    assert visible(where) == pairs


def test_predicates_of_chosen_chunks() -> None:
    chosen = next(node for node in sparsec.preset("hsa", chunk=8).nodes if node.op is Op.TOPK)
    eligible = chosen.expr("eligible")
    assert eligible is not None
    assert [evaluate(eligible, {"i": i, "c": 1}) for i in (15, 16)] == [False, True]
    outside = next(n for n in sparsec.preset("hsa", chunk=8, window=16, outside_window=True).nodes if n.op is Op.TOPK)
    eligible = outside.expr("eligible")
    assert eligible is not None
    assert [evaluate(eligible, {"i": i, "c": 1}) for i in (23, 24)] == [False, True]
