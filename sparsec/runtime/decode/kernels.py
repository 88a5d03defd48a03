"""The kernels of a decode step: those of the forward plan, rewritten to read a cache, and those that bring it up to
date."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sparsec.lower.decode import append as decode_append
from sparsec.lower.decode.company import ALONE, SHARED, Company
from sparsec.lower.decode.pages import LENGTHS, TOKENS, Growing, Windows, on_cache
from sparsec.lower.decode.schedules import lower
from sparsec.lower.lowered import Chain, Lowered, Step
from sparsec.plan.grad_specs import AnySpec
from sparsec.plan.plan import Kernel
from sparsec.plan.specs import BlockList, Summarise, TiledAttention
from sparsec.runtime.decode.cache_layout import Place
from sparsec.runtime.launch import Bind, build
from sparsec.runtime.target import Target
from sparsec.scalar.evaluate import evaluate
from sparsec.tile.language import Program
from sparsec.tile.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class DecodeKernel:
    """A kernel of the plan over pages.

    Attributes:
        windows: which windows it brings up to date, for a running summary.
    """

    kernel: Kernel
    lowered: Lowered
    programs: tuple[tuple[Program, Bind], ...]
    windows: Windows | None

    def launches(self, buffers: dict[str, Tensor], dims: Mapping[str, int], tokens: int) -> list[Callable[[], None]]:
        """Launches on buffers by name, for so many new tokens; ``dims`` are those of a full cache.

        Scratch joins the buffers: a partner finds there what this kernel left.
        """
        import torch

        params = {name: int(evaluate(value, dims)) for name, value in self.kernel.params}
        params |= {name: int(evaluate(value, params)) for name, value in self.lowered.params} | {TOKENS: tokens}
        if self.windows is not None:
            params[self.windows.count] = (tokens + self.windows.size - 2) // self.windows.stride + 1
        device = buffers[LENGTHS].device
        for s in self.lowered.scratch:
            if s.name not in buffers:
                shape = [int(evaluate(d, params)) for d in s.shape]
                buffers[s.name] = torch.empty(shape, dtype=getattr(torch, s.dtype), device=device)
        return [bind([buffers[t.name] for t in program.tensors], params) for program, bind in self.programs]


def over_pages(
    kernel: Kernel, schedule: Schedule, places: Mapping[str, Place], lengths: tuple[str, str], target: Target,
    cache_dir: Path, beside: Company = ALONE, chain: Chain | None = None,
) -> DecodeKernel:  # fmt: skip
    """A kernel of the forward plan built over a cache; ``lengths`` are the dims that count queries and keys."""
    spec = per_sequence(kernel.spec)
    lowered = lower(spec, replace(schedule, descriptors=False), beside)
    windows = Windows(spec.size, spec.stride, spec.length) if isinstance(spec, Summarise) else None
    paged = {name: place.paged for name, place in places.items()}
    params = dict(kernel.params)
    if schedule.order == SHARED and isinstance(spec, TiledAttention):
        params["TK"] = params[spec.pieces[0].length]
    growing = Growing(*lengths, params)
    programs = [(on_cache(s.program, paged, growing, windows), s.schedule) for s in lowered.steps]
    steps = [Step(p, s, chain=chain) for p, s in programs]
    return DecodeKernel(kernel, lowered, tuple((s.program, build(s, target, cache_dir)) for s in steps), windows)


def per_sequence(spec: AnySpec) -> AnySpec:
    """Block lists of each sequence, whose lengths differ."""
    if isinstance(spec, BlockList):
        return replace(spec, per_batch=True)
    if isinstance(spec, TiledAttention):
        lists = [None if p.listed is None else replace(p.listed, per_batch=True) for p in spec.pieces]
        return replace(spec, pieces=tuple(replace(p, listed=x) for p, x in zip(spec.pieces, lists, strict=True)))
    return spec


@dataclass(frozen=True, slots=True)
class AppendKernel:
    """New rows of the inputs that have one row per ``unit`` tokens."""

    spec: decode_append.Append
    program: Program
    bind: Bind

    def launch(
        self, new: Mapping[str, Tensor], buffers: Mapping[str, Tensor], tokens: int
    ) -> Callable[[], None] | None:
        """A launch on the new rows ``[B, R, …]`` by input name; None without any."""
        first = new[self.spec.parts[0][0]]
        batch, rows = first.shape[:2]
        if not rows or not batch:
            return None
        every = dict(buffers)
        for name, width, _, paged in self.spec.parts:
            every[name + decode_append.NEW] = new[name].reshape(batch, rows, width)
            every[name] = buffers[name].view(-1, paged.rows, width)
        return self.bind([every[t.name] for t in self.program.tensors], {"B": batch, "R": rows, TOKENS: tokens})


def appends(
    kept: Sequence[tuple[str, int]], places: Mapping[str, Place], target: Target, cache_dir: Path,
    chain: Chain | None = None,
) -> list[AppendKernel]:  # fmt: skip
    """One kernel per number of tokens in a row; ``kept`` are inputs with that number."""
    found = []
    for unit in sorted({u for _, u in kept}):
        parts = tuple((n, _width(places[n].row), places[n].dtype, places[n].paged) for n, u in kept if u == unit)
        spec = decode_append.Append(f"append_{unit}", parts, unit)
        schedule = decode_append.default(target.name)
        program = decode_append.lower(spec, schedule)
        step = Step(program, schedule, chain=chain and replace(chain, head=True))
        found.append(AppendKernel(spec, program, build(step, target, cache_dir)))
    return found


def _width(row: Sequence[int]) -> int:
    width = 1
    for extent in row:
        width *= extent
    return width
