"""Covering designs: a short list of cases in which every pair of values of any two factors occurs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

Choice = tuple[int, ...]
Pair = tuple[int, int, int, int]


def pairwise(factors: Mapping[str, Sequence[object]]) -> list[dict[str, object]]:
    """Cases as factor -> value such that any two values of different factors meet in a case.

    Greedy and without randomness: a case starts from a pair that is still missing and takes, factor by factor, the
    value that adds the most missing pairs, the least used one among equals.
    """
    names, sizes = list(factors), [len(values) for values in factors.values()]
    missing = _all_pairs(sizes)
    used = [[0] * size for size in sizes]
    cases = []
    while missing:
        chosen = _case(sizes, missing, used)
        missing.difference_update(_pairs(chosen))
        cases.append({name: factors[name][value] for name, value in zip(names, chosen, strict=True)})
        for factor, value in enumerate(chosen):
            used[factor][value] += 1
    return cases


def _all_pairs(sizes: Sequence[int]) -> set[Pair]:
    """Every (factor, value, later factor, value)."""
    return {
        (f, a, g, b)
        for f, g in itertools.combinations(range(len(sizes)), 2)
        for a in range(sizes[f])
        for b in range(sizes[g])
    }


def _case(sizes: Sequence[int], missing: set[Pair], used: Sequence[Sequence[int]]) -> Choice:
    first, value, second, other = min(missing)
    fixed = {first: value, second: other}
    for factor in sorted(range(len(sizes)), key=lambda f: -sizes[f]):
        if factor not in fixed:
            fixed[factor] = max(
                range(sizes[factor]), key=lambda v: (_gain(fixed, factor, v, missing), -used[factor][v], -v)
            )
    return tuple(fixed[factor] for factor in range(len(sizes)))


def _gain(fixed: Mapping[int, int], factor: int, value: int, missing: set[Pair]) -> int:
    """How many missing pairs a value adds to what is fixed."""
    met = (((f, v, factor, value) if f < factor else (factor, value, f, v)) for f, v in fixed.items())
    return sum(pair in missing for pair in met)


def _pairs(chosen: Choice) -> set[Pair]:
    return {(f, chosen[f], g, chosen[g]) for f, g in itertools.combinations(range(len(chosen)), 2)}
