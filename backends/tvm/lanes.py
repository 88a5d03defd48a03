"""Vector lanes: which axis of a value lies along a vector register, and how wide the vectors of an axis are."""

from __future__ import annotations

from collections.abc import Iterable

from sparsec.tile.language import Axis
from sparsec.tile.schedule import Schedule, ScheduleError

UNROLLED = 4
"""An axis of at most so many vectors is printed as straight-line code and may live in registers."""


class Lanes:
    """The lane choices of a schedule. An axis is as wide as the largest power of two in it, up to a register."""

    def __init__(self, schedule: Schedule) -> None:
        if schedule.vector not in (1, 2, 4, 8, 16, 32):
            raise ScheduleError(f"vector: {schedule.vector} floats is no vector length; use 4, 8 or 16")
        self.vector = schedule.vector
        self._priority = {name: k for k, name in reversed(list(enumerate(schedule.lanes)))}

    def width(self, axis: Axis) -> int:
        """Elements of ``axis`` per vector; 1 means scalar code."""
        return min(axis.size & -axis.size, self.vector)

    def chunks(self, axis: Axis) -> int:
        """Vectors along ``axis``."""
        return axis.size // self.width(axis)

    def unrolled(self, axis: Axis) -> bool:
        """Whether code along ``axis`` is straight-line."""
        return self.chunks(axis) <= UNROLLED

    def pick(self, axes: Iterable[Axis]) -> Axis | None:
        """The lane axis of a value: the first of the schedule's list that fills a vector, else the widest of them."""
        ranked = [(rank, axis.rank, axis) for axis in axes if (rank := self._rank(axis)) is not None]
        choices = [axis for *_, axis in sorted(ranked, key=lambda entry: entry[:2]) if self.width(axis) > 1]
        full = [axis for axis in choices if self.width(axis) == self.vector]
        return full[0] if full else max(choices, key=self.width, default=None)

    def _rank(self, axis: Axis) -> int | None:
        """The place of an axis in the list; ``e_1`` stands where ``e`` does."""
        stem, _, tail = axis.name.rpartition("_")
        return self._priority.get(axis.name, self._priority.get(stem) if tail.isdigit() else None)
