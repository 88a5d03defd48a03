"""A point of an iteration space: where in a tile a value is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sparsec.backends.tvm.text import plus
from sparsec.tile.language import Axis


@dataclass(frozen=True, slots=True)
class Point:
    """An index text for every row axis, and one vector along the lane axis.

    Attributes:
        start: the first index of the vector along ``lane``.
        width: lanes of the vector.
    """

    rows: Mapping[Axis, str] = field(default_factory=dict)
    lane: Axis | None = None
    start: str = "0"
    width: int = 1

    def at(self, axis: Axis, index: str) -> Point:
        """The point with one more row index."""
        return replace(self, rows={**self.rows, axis: index})

    def element(self, offset: str = "0") -> Point:
        """One lane of the point, as a point without a lane."""
        return self if self.lane is None else Point({**self.rows, self.lane: plus(self.start, offset)})

    def renamed(self, old: Axis, new: Axis) -> Point:
        """The point of ``x`` that belongs to this point of ``rename(x, old, new)``."""
        if self.lane == new:
            return replace(self, lane=old)
        rows = {**self.rows, old: self.rows[new]} if new in self.rows else self.rows
        return Point(rows) if self.lane == old else replace(self, rows=rows)

    def width_of(self, axes: tuple[Axis, ...]) -> int:
        """Lanes of a value with these axes at this point."""
        return self.width if self.lane in axes else 1

    def key(self, axes: tuple[Axis, ...]) -> tuple[str, ...]:
        """What tells a value's elements apart: equal keys mean equal values."""
        return tuple(f"{self.start}:{self.width}" if a == self.lane else self.rows[a] for a in axes)
