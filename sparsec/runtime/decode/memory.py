"""What the views of one cache share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakSet

from sparsec.runtime.decode.cache_layout import Place
from sparsec.runtime.decode.snapshot import Snapshot

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class Memory:
    """What the views of one cache share; empty before the first tokens.

    Attributes:
        lengths: int32 ``[batch]`` on the device: tokens of each sequence; ``ends`` during a step: with the new ones.
        tables: block tables, int32 ``[batch, blocks]``.
        tensors, places: pages by the name of what they hold, and how they are laid out.
        known: tokens of each sequence as the host knows them; ``pages`` of the pool by sequence.
        written: the most tokens that each sequence had, of which those taken back still lie in rings.
        states: matrix states, fp32 ``[batch, parts, heads, rows, columns]``, by the name of the step's input; what
            else is held at a fixed size.
        first: the states that a sequence begins with, with a batch or without; zero where there are none.
        snapshots: those that may still be restored.
    """

    known: list[int]
    pages: list[list[int]]
    written: list[int]
    lengths: Tensor | None = None
    ends: Tensor | None = None
    tables: dict[str, Tensor] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    states: dict[str, Tensor] = field(default_factory=dict)
    first: dict[str, Tensor] = field(default_factory=dict)
    snapshots: WeakSet[Snapshot] = field(default_factory=WeakSet)
