"""What some sequences of a cache held at one moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsec.runtime.decode.declared import Declared

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(eq=False)
class Snapshot:
    """Some sequences of a cache at one moment.

    Attributes:
        declared: the declaration that the cache was made for.
        first: the number of the first of them.
        lengths: their tokens.
        states: copies, by the name of the step's input; none before the first tokens.
        counted: the lengths on the device; None where nothing is kept by position.
        outdated: whether pages may hold other tokens by now.
    """

    declared: Declared
    first: int
    lengths: Sequence[int]
    states: Mapping[str, Tensor]
    counted: Tensor | None
    outdated: bool = False
