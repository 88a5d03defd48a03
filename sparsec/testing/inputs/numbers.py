"""Inputs that provoke: exact ties, scores far below zero, scores far apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

KEYS, QUERIES = ("k", "l"), ("q", "r")
"""First letters of the inputs that are keys, and of those that ask for them."""

Turn = Callable[[str, Tensor], Tensor]


def normal(name: str, x: Tensor) -> Tensor:
    """As drawn."""
    return x


def ties(name: str, x: Tensor) -> Tensor:
    """-1, 0 and 1 in keys and queries: products are exact in every precision, and many scores are equal."""
    return x.round().clamp(-1, 1) if name[0] in (*KEYS, *QUERIES) else x


def low(name: str, x: Tensor) -> Tensor:
    """Positive queries and negative keys with scores around -6, where padding scores 0: a padded key that a mask lets
    through outweighs hundreds of real ones, and half precision still holds their weights beside a sink's."""
    if name[0] not in (*KEYS, *QUERIES):
        return x
    size: Tensor = (x.abs() + 0.5) * (6.0 / 1.7) ** 0.5 / x.shape[-1] ** 0.25
    return size if name[0] in QUERIES else -size


def steep(name: str, x: Tensor) -> Tensor:
    """Queries four times as long: softmaxes with few large weights, running maxima that jump."""
    return x * 4 if name[0] in QUERIES else x


NUMBERS: dict[str, Turn] = {"normal": normal, "ties": ties, "low": low, "steep": steep}


def turned(inputs: Mapping[str, Tensor], numbers: str) -> dict[str, Tensor]:
    """Float inputs of a call put through a function of ``NUMBERS``; others as they are."""
    turn: Turn = NUMBERS[numbers]
    return {name: turn(name, x) if x.dtype.is_floating_point else x for name, x in inputs.items()}
