"""Where the calls of a compiled variant are found again by C++, before Python makes a key of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsec.runtime.env import Env
from sparsec.runtime.native.build import native
from sparsec.runtime.records import Records

if TYPE_CHECKING:
    from torch import Tensor

    from sparsec.tile.schedule import Schedule

Straight = Callable[[Mapping[str, Any], Any], "Tensor | tuple[Tensor, ...] | None"]
"""A whole call from inputs by name and ``q_offset``; None, with nothing done, where it must go another way."""


class Tables:
    """Calls by the layout of their tensors, a table for each kind: plain ones, those with gradients, backward halves.

    A table forgets its calls when schedules, tuned records or torch's deterministic mode change.

    Attributes:
        straight: makes a whole plain call that was found before; None as long as there is none, or no C++.
    """

    def __init__(self, names: Sequence[str], schedules: Mapping[str, Schedule], device: str, folder: Path) -> None:
        self._names, self._schedules, self._device, self._folder = tuple(names), schedules, device, folder
        self._made: dict[Hashable, Any] = {}
        self.straight: Straight | None = None

    @cached_property
    def module(self) -> Any:
        """The C++ module; None where it is not wanted or cannot be had."""
        return native(self._folder) if self._device == "cuda" and not Env().python_launches else None

    def find(self, kind: Hashable, tensors: Sequence[Tensor], tag: object) -> Any:
        """What was kept for tensors of this layout; None where nothing was."""
        table = self._made.get(kind)
        return None if table is None else table.find(tensors, tag)

    def keep(self, kind: Hashable, tensors: Sequence[Tensor], tag: object, call: object) -> None:
        """Let a call be found again. ``tag`` is None, an integer or a tuple of them."""
        if self.module is None:
            return
        if kind not in self._made:
            self._made[kind] = self._table()
        self._made[kind].keep(tensors, tag, call)
        if kind == ():
            self.straight = self._made[kind].call

    def _table(self) -> Any:
        import torch

        from sparsec.runtime.route import PLAIN

        modes = (torch._C._get_deterministic_algorithms, torch._C._get_deterministic_algorithms_warn_only)
        return self.module.Table(self._names, self._schedules, Records, modes, tuple(PLAIN))
