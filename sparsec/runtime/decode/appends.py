"""What writes new rows of a cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparsec.lower.decode import append as decode_append
from sparsec.lower.decode.chained import chained, written
from sparsec.lower.decode.pages import TOKENS
from sparsec.lower.lowered import Step
from sparsec.runtime.decode.cache_layout import Place
from sparsec.runtime.launch import Bind, build
from sparsec.runtime.target import Target
from sparsec.tile.language import Program

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class AppendKernel:
    """New rows of some inputs, of each as many tokens."""

    spec: decode_append.Append
    program: Program
    bind: Bind

    def rows(self, new: Mapping[str, Tensor]) -> tuple[int, int]:
        """Sequences, and new rows that all its inputs have: what some have beyond those belongs to no whole chunk."""
        shapes = [tuple(new[p.name].shape[:2]) if p.name in new else (0, 0) for p in self.spec.parts]
        return min(batch for batch, _ in shapes), min(count for _, count in shapes)

    def launch(self, new: Mapping[str, Tensor], buffers: Mapping[str, Tensor], tokens: int) -> Callable[[], None]:
        """A launch on the new rows ``[B, R, …]`` by input name."""
        every, (batch, count) = dict(buffers), self.rows(new)
        for part in self.spec.parts:
            every[part.name + decode_append.NEW] = new[part.name][:, :count].reshape(batch, count, *part.row)
            pages = buffers[part.name]
            every[part.name] = pages if pages.dim() == 4 else pages.view(-1, part.paged.rows, *part.row)
        return self.bind([every[t.name] for t in self.program.tensors], {"B": batch, "R": count, TOKENS: tokens})


def appends(
    kept: Sequence[tuple[str, int]], places: Mapping[str, Place], target: Target, cache_dir: Path,
    chain: bool = False,
) -> list[AppendKernel]:  # fmt: skip
    """One kernel per number of tokens in a row, new tokens' first, which is a chain's head; then one for all inputs.

    ``kept`` are inputs with that number.
    """
    parts = [decode_append.Part(n, _row(places[n].row), places[n].dtype, places[n].paged, u) for n, u in kept]
    units = sorted({part.unit for part in parts})
    found, before = list[AppendKernel](), set[str]()
    for own in [[u] for u in units] + [units] * (len(units) > 1):
        name = "_".join(str(unit) for unit in own)
        spec = decode_append.Append(f"append_{name}", tuple(p for p in parts if p.unit in own))
        schedule = decode_append.default(target.name)
        program = decode_append.lower(spec, schedule)
        known = before if len(own) == 1 else set[str]()
        (step,) = chained([Step(program, schedule)], known if chain else None)
        before = before | written(program)
        found.append(AppendKernel(spec, program, build(step, target, cache_dir)))
    return found


def appended(
    kernels: Sequence[AppendKernel], new: Mapping[str, Tensor], buffers: Mapping[str, Tensor], tokens: int
) -> list[Callable[[], None]]:
    """Launches that write new rows: one, where all inputs have as many."""
    several = len(kernels) > 1
    each = kernels[:-1] if several else kernels
    rows = {kernel.rows(new) for kernel in each}
    if several and len(rows) == 1 and 0 not in next(iter(rows)):
        return [kernels[-1].launch(new, buffers, tokens)]
    return [kernel.launch(new, buffers, tokens) for kernel in each if 0 not in kernel.rows(new)]


def _row(row: Sequence[int]) -> tuple[int, int]:
    """Heads and elements; one head of all where a row has not these two."""
    if len(row) == 2:
        return row[0], row[1]
    width = 1
    for extent in row:
        width *= extent
    return 1, width
