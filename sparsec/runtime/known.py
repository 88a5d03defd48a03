"""A call that was worked out, and how many of what was worked out is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsec.runtime import bind
from sparsec.runtime.ready import Ready
from sparsec.tile.schedule import Schedule

MOST_CALLS = 4096
"""How many calls worked out are kept; the oldest goes first."""
MOST_PLANS = 512
"""How many plans, and how many built kernels, are kept: there is one for each set of heads and head dims."""

TRACED = ""
"""Ahead of the names of inputs that gradients are for: who traces a call knows what is saved before schedules are."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call worked out: how to run it, the schedules it was made under, and what to check of which inputs."""

    ready: Ready
    schedules: Mapping[str, Schedule]
    rules: tuple[tuple[bind.IndexRule, tuple[int, ...]], ...]

    @property
    def native(self) -> Any:
        """The call in C++, where there is one that needs no check."""
        quick = self.ready.quick
        return None if self.rules or quick is None else quick.native


def room(kept: dict[tuple[object, ...], Any], most: int) -> None:
    """Make room for one more; the oldest goes first."""
    while len(kept) >= most:
        kept.pop(next(iter(kept)))
