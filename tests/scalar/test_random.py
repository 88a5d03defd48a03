"""The generator of random blocks: exact on every target, in range, and random enough."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsec.scalar.bounds import Bounded, key_ranges
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import var
from sparsec.scalar.interval import Range, fits_int32, range_of
from sparsec.scalar.random import FIRST, LAST, PRODUCT, SECOND, random_block

WORDS = ("seed", "h", "n", "draw")
BLOCK = random_block(var("seed"), var("h"), var("n"), var("draw"), var("limit"))
WORD = st.integers(0, 2**30 - 1)


def table(limit: int, heads: int = 16, blocks: int = 64, draws: int = 16, seed: int = 0) -> torch.Tensor:
    """Draws [heads, blocks, draws] in int32 arithmetic."""
    h, n, draw = torch.meshgrid(*(torch.arange(k, dtype=torch.int32) for k in (heads, blocks, draws)), indexing="ij")
    return torch.as_tensor(evaluate(BLOCK, {"seed": seed, "h": h, "n": n, "draw": draw, "limit": limit}))


def surprise(counts: torch.Tensor) -> float:
    """Chi-squared against equal counts, in standard deviations."""
    expected = counts.double().mean()
    freedom = counts.numel() - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


def test_moduli_are_different_primes() -> None:
    moduli = [*(p for p, _ in FIRST + SECOND), PRODUCT]
    assert len(set(moduli)) == len(moduli) and all(a < p < 2**15 for p, a in FIRST + SECOND)
    assert all(p % d for p in [*moduli, LAST] for d in range(2, 182))


def test_int32_holds_every_intermediate() -> None:
    words = {name: Range(0, 2**30 - 1) for name in WORDS}
    assert fits_int32(BLOCK, words | {"limit": Range(0, 2**30)})
    assert range_of(BLOCK, words | {"limit": Range(1, 48)}) == Range(0, 47)


@given(WORD, WORD, WORD, WORD, st.integers(-3, 1000))
def test_python_and_int32_agree(seed: int, h: int, n: int, draw: int, limit: int) -> None:
    env = {"seed": seed, "h": h, "n": n, "draw": draw, "limit": limit}
    value = evaluate(BLOCK, env)
    assert 0 <= value < max(limit, 1)
    assert value == evaluate(BLOCK, {k: torch.tensor(v, dtype=torch.int32) for k, v in env.items()})
    assert random_block(seed, h, n, draw, limit).value == value


def test_blocks_are_near_uniform() -> None:
    for seed in range(4):
        assert abs(surprise(torch.bincount(table(61, seed=seed).flatten().long(), minlength=61))) < 4


def test_neighbours_are_near_independent() -> None:
    drawn = table(13, heads=32, blocks=128).long()
    pairs = [
        (drawn[:-1], drawn[1:]), (drawn[:, :-1], drawn[:, 1:]), (drawn[..., :-1], drawn[..., 1:]),
        (drawn[:, :-2], drawn[:, 2:]), (table(13, 32, 128, seed=1).long(), drawn),
    ]  # fmt: skip
    for a, b in pairs:
        assert abs(surprise(torch.bincount((13 * a + b).flatten(), minlength=169))) < 4.5


def test_a_mask_of_random_blocks_is_bounded_but_sparse() -> None:
    i, j, h = var("i"), var("j"), var("h")
    found = key_ranges((j <= i) & (j // 64 == random_block(0, h, i // 64, 2, i // 64)))
    assert isinstance(found, Bounded)
    assert [r.sparse_residual for r in found.ranges] == [True]
