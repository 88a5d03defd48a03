"""Lists of a coarser level: units that are chosen only where what they are part of was."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Parents:
    """The chosen units one level up: unit c may be chosen where c // fanout is in the list of its query or token.

    Attributes:
        counts: int32 ``[B,length,heads]``, of given lists: only so many slots count; None: all.
        ids: int32 ``[B,length,heads,slots]``, -1 where there is none; lists of several heads may share one of theirs.
    """

    ids: str
    heads: int
    slots: int
    fanout: int
    counts: str | None = None

    @property
    def buffers(self) -> list[str]:
        """What is read of them."""
        return [self.ids, *([self.counts] if self.counts is not None else [])]
