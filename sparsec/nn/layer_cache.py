"""What a layer keeps between decode steps, and copies of it that steps can be taken back to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sparsec.ir.error import InputError
from sparsec.nn import sources


@dataclass(frozen=True, eq=False)
class LayerSnapshot:
    """A layer's cache at one moment: the op's snapshot, convolutions' tails and the number of tokens seen."""

    op: Any
    tails: sources.Tails
    seen: int


@dataclass
class LayerCache:
    """What a layer keeps between decode steps: the op's cache, convolutions' tails, and how many tokens were seen.

    ``manner`` is in which dtypes and on what devices the model's last step was computed.
    """

    op: Any
    tails: sources.Tails = field(default_factory=dict)
    seen: int = 0
    manner: object = None

    def snapshot(self) -> LayerSnapshot:
        """What the cache holds now, to go back to as often as one likes: a draft that may be refused."""
        return LayerSnapshot(self.op.snapshot(), dict(self.tails), self.seen)

    def restore(self, snapshot: LayerSnapshot) -> None:
        """Go back to a snapshot. Raises InputError where the op's cache refuses it, and is as it was then."""
        if any(snapshot.op.lengths):
            self.op.restore(snapshot.op)
        else:
            self.op.free()
        self.tails, self.seen = dict(snapshot.tails), snapshot.seen


def fits(cache: LayerCache, x: Tensor) -> None:
    """Hidden states have a row per sequence, and room for their tokens. Raises InputError where they do not."""
    if x.shape[0] != cache.op.batch:
        rule = f"the cache was made for {cache.op.batch} sequences"
        raise InputError("cache", f"a batch of {x.shape[0]}", rule, "give every sequence its tokens")
    cache.op.reserve(x.shape[1])
