"""What the kernels of a cache are built into, and their launches on buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsec.lower.decode.chained import written
from sparsec.lower.decode.company import company
from sparsec.lower.decode.in_place import in_place
from sparsec.lower.decode.pages import LENGTHS
from sparsec.passes.stream import Streamed
from sparsec.passes.stream_spec import CacheSpec
from sparsec.plan.maps.map_specs import Map
from sparsec.plan.plan import Plan
from sparsec.plan.specs import BlockList
from sparsec.runtime.decode.appends import AppendKernel, appends
from sparsec.runtime.decode.cache_layout import Place
from sparsec.runtime.decode.cache_state import Cache
from sparsec.runtime.decode.kernels import (
    DecodeKernel,
    Launch,
    Scheduled,
    over_pages,
    scans_last,
    together,
    without_squares,
    worked_out,
)
from sparsec.runtime.env import Env

if TYPE_CHECKING:
    from torch import Tensor

    from sparsec.runtime.compiled import Compiled


@dataclass(frozen=True, slots=True)
class Built:
    """What a cache's kernels were built into.

    Attributes:
        in_place: the banks whose kernel was proved to leave new states where it found the old ones; of the others
            a step makes a copy.
    """

    plan: Plan
    appends: list[AppendKernel]
    kernels: list[DecodeKernel]
    launches: list[Launch]
    places: Mapping[str, Place]
    in_place: frozenset[str]


def make(
    streamed: Streamed, compiled: Compiled, plan: Plan, scheduled: Scheduled, found: Mapping[str, Place], few: bool
) -> Built:
    """Kernels of a plan under these schedules, over a cache whose tensors lie in ``found``; of ``few`` new tokens."""
    spec, maps = streamed.spec, dict[str, Map]()
    kept = [(k.name, k.unit) for k in spec.kept if k.name in found]
    where = (compiled.target, compiled.cache_dir)
    if few and spec.states:
        scheduled = scans_last(scheduled)
        maps = worked_out(scheduled, plan.outputs)
        scheduled = [(k, s) for k, s in scheduled if not maps.keys() & set(k.writes)]
    counts = any(unit == 1 for _, unit in kept)  # a launch writes new tokens, and tells the others how many there are
    chain = few and (counts or not kept) and compiled.target.chains and Env().early_launch
    beside, lengths = company(scheduled, plan.outputs), (streamed.queries, streamed.keys)
    kernels = [over_pages(k, s, found, lengths, beside[k.name], maps) for k, s in scheduled]
    joins = few and (counts or not spec.paged)
    if few:
        kernels = without_squares(kernels, set(plan.outputs), found.keys())
    first = appends(kept, found, *where, chain)
    before = set[str]().union(*(written(a.program) for a in first)) if chain else None
    launches = together(kernels, *where, joins, counts, before, set(plan.outputs))
    return Built(plan, first, kernels, launches, found, _in_place(spec, plan, kernels))


def _in_place(spec: CacheSpec, plan: Plan, kernels: Sequence[DecodeKernel]) -> frozenset[str]:
    """The buffers of last states that may be the memory of the first."""
    steps = [step for kernel in kernels for step in kernel.steps]
    pairs = [(held.name, plan.outputs[held.output]) for held in spec.states]
    return frozenset(last for first, last in pairs if in_place(steps, first, last))


def bound(
    built: Built, buffers: dict[str, Tensor], dims: Mapping[str, int], count: int, whole: bool
) -> list[Callable[[], None]]:
    """Launches on buffers by name, which scratch joins; only of running summaries where not ``whole``."""
    import torch

    device = buffers[LENGTHS].device
    params = {kernel.kernel.name: kernel.params(dims, count) for kernel in built.kernels}
    for kernel in built.kernels:
        for name, (shape, dtype) in kernel.scratch(params[kernel.kernel.name]).items():
            if name not in buffers:
                buffers[name] = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
    found = []
    for launch in built.launches:
        if whole or launch.kernels[0].windows is not None:
            own = {name: x for kernel in launch.kernels for name, x in params[kernel.kernel.name].items()}
            found.append(launch.bind([buffers[t.name] for t in launch.step.program.tensors], own))
    return found


def copy(to: Tensor, x: Tensor) -> None:
    """to = x."""
    to.copy_(x)


def temporaries(plan: Plan, dims: Mapping[str, int], cache: Cache, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Room for what kernels write beside the cache and what is known; block lists are each sequence's own."""
    import torch

    assert cache.lengths is not None
    lists = {n for k in plan.kernels if isinstance(k.spec, BlockList) for n in k.writes}
    found = {}
    for b in plan.buffers:
        if b.role != "input" and b.name not in known:
            first, *rest = b.size(dims)
            shape = (cache.batch if b.name in lists else first, *rest)
            found[b.name] = torch.empty(shape, dtype=getattr(torch, b.dtype), device=cache.lengths.device)
    return found
