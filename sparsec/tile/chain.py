"""How a launch may overlap with the one before."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chain:
    """A launch that starts while the one before ends, and waits for its end (Triton on Hopper and later).

    Attributes:
        ready: tensors that no launch before this one writes, from the chain's head on; they are read before the wait.
        head: whether others follow only once it has waited: then all that came before the chain has ended.
    """

    ready: frozenset[str] = frozenset()
    head: bool = False
