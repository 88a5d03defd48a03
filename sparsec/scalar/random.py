"""Random blocks for masks: a counter-based generator that every target computes exactly, in 31-bit integers.

Two chains absorb (seed, head, query block, draw) by x -> (a * x + word) mod p, each step with a prime p < 2**15 and a
multiplier a < p of its own; their product is taken modulo a third prime and mixed once more. Changing the modulus makes
the steps non-linear in each other. No intermediate reaches 2**31 while the words stay below 2**30, and none is
negative, so that Python, torch, and int32 kernels with truncating or flooring division agree. The state has 15 bits:
limits far below 32693 are near uniform, and values from 32693 on never occur.
"""

from __future__ import annotations

from sparsec.scalar.expr import Expr, ExprLike, lift
from sparsec.scalar.functions import maximum

FIRST = ((32749, 20021), (32719, 25667), (32717, 17891), (32713, 29123))
SECOND = ((32707, 26393), (32693, 19853), (32687, 30059), (32653, 23227))
PRODUCT, MIX, LAST = 32647, 21269, 32693


def random_block(seed: ExprLike, h: ExprLike, query_block: ExprLike, draw: ExprLike, limit: ExprLike) -> Expr:
    """A pseudo-random block id in ``[0, limit)``, or 0 where limit < 1; the same words always give the same block.

    Args:
        seed, h, query_block, draw: integers in ``[0, 2**30)``; different draws of one query block may coincide.
        limit: the number of blocks to choose from, such as the query's own block id for "earlier blocks".
    """
    words = tuple(lift(word) for word in (seed, h, query_block, draw))
    mixed = _absorbed(words, FIRST) * _absorbed(words, SECOND) % PRODUCT
    return (mixed * MIX + 1) % LAST % maximum(limit, 1)


def _absorbed(words: tuple[Expr, ...], steps: tuple[tuple[int, int], ...]) -> Expr:
    """The state of one chain after all words."""
    state = lift(1)
    for word, (modulus, factor) in zip(words, steps, strict=True):
        state = (state * factor + word) % modulus
    return state
