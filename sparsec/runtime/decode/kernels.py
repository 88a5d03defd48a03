"""The kernels of a decode step: those of the forward plan, rewritten to read a cache, and those that bring it up to
date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sparsec.lower.decode.chained import chained, loaded
from sparsec.lower.decode.company import ALONE, SHARED, Company
from sparsec.lower.decode.inline import chosen, inlined
from sparsec.lower.decode.pages import ENDS, TOKENS, Growing, Windows, on_cache
from sparsec.lower.decode.passed import passed
from sparsec.lower.decode.schedules import lower
from sparsec.lower.decode.squares import has_rows, squares, with_squares
from sparsec.lower.decode.together import agree, apart, counted, fit, joined
from sparsec.lower.lowered import Lowered, Step
from sparsec.plan.grad_specs import AnySpec
from sparsec.plan.maps.map_specs import Map
from sparsec.plan.plan import Kernel
from sparsec.plan.specs import BlockList, Summarise, TiledAttention
from sparsec.plan.states.scan_specs import Scan
from sparsec.runtime.decode.cache_layout import Place
from sparsec.runtime.launch import Bind, build
from sparsec.runtime.target import Target
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import Expr
from sparsec.tile.schedule import Schedule

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class DecodeKernel:
    """A kernel of the plan over pages.

    Attributes:
        steps: its programs in launch order.
        windows: which windows it brings up to date, for a running summary.
    """

    kernel: Kernel
    lowered: Lowered
    steps: tuple[Step, ...]
    windows: Windows | None

    @property
    def expressions(self) -> dict[str, Expr]:
        """Its launch parameters over the declaration's dims."""
        return {**dict(self.kernel.params), **dict(self.lowered.params)}

    def params(self, dims: Mapping[str, int], tokens: int) -> dict[str, int]:
        """Its launch parameters for so many new tokens; ``dims`` are those of a full cache."""
        params = {name: int(evaluate(value, dims)) for name, value in self.kernel.params}
        params |= {name: int(evaluate(value, params)) for name, value in self.lowered.params} | {TOKENS: tokens}
        if self.windows is not None:
            params[self.windows.count] = (tokens + self.windows.size - 2) // self.windows.stride + 1
        return params

    def scratch(self, params: Mapping[str, int]) -> dict[str, tuple[list[int], str]]:
        """Shapes and dtypes by name of what its programs leave for each other, or for another kernel."""
        return {s.name: ([int(evaluate(d, params)) for d in s.shape], s.dtype) for s in self.lowered.scratch}


def over_pages(
    kernel: Kernel, schedule: Schedule, places: Mapping[str, Place], lengths: tuple[str, str],
    beside: Company = ALONE, maps: Mapping[str, Map] | None = None,
) -> DecodeKernel:  # fmt: skip
    """A kernel of the forward plan over a cache; ``lengths`` are the dims that count queries and keys.

    It works out the ``maps`` whose results it reads.
    """
    spec = per_sequence(kernel.spec)
    lowered = lower(spec, replace(schedule, descriptors=False), beside)
    windows = Windows(spec.size, spec.stride, spec.length) if isinstance(spec, Summarise) else None
    paged = {name: place.paged for name, place in places.items()}
    params = dict(kernel.params)
    if schedule.order == SHARED and isinstance(spec, TiledAttention):
        params["TK"] = params[spec.pieces[0].length]
    growing = Growing(*lengths, params)
    programs = [inlined(s.program, maps or {}) for s in lowered.steps]
    both = zip(lowered.steps, programs, strict=True)
    steps = [replace(s, program=on_cache(p, paged, growing, windows)) for s, p in both]
    return DecodeKernel(kernel, lowered, tuple(steps), windows)


def without_squares(kernels: Sequence[DecodeKernel], outputs: Set[str], paged: Set[str]) -> list[DecodeKernel]:
    """Kernels whose programs work out the squares of the rows that they read; kernels that did that alone are gone.

    Rows that are ``paged`` lie elsewhere than their squares do: those are read as they were made.
    """
    found = list(kernels)
    for made in kernels:
        spec = made.kernel.spec
        if not squares(spec) or spec.delta in outputs or spec.out in paged:
            continue
        readers = [k for k in found if spec.delta in set[str]().union(*(loaded(s.program) for s in k.steps))]
        steps = [s for k in readers for s in k.steps if spec.delta in loaded(s.program)]
        if all(has_rows(s.program, spec) for s in steps):
            own = {id(s): replace(s, program=with_squares(s.program, spec)) for s in steps}
            found = [replace(k, steps=tuple(own.get(id(s), s) for s in k.steps)) for k in found if k is not made]
    return found


Scheduled = Sequence[tuple[Kernel, Schedule]]


def scans_last(kernels: Scheduled) -> list[tuple[Kernel, Schedule]]:
    """Kernels in an order in which they can run, scans as late as possible: those of one grid are one launch then."""
    waiting, found = list(kernels), list[tuple[Kernel, Schedule]]()
    while waiting:
        ready = [k for n, k in enumerate(waiting) if not _needs(k[0], [other for other, _ in waiting[:n]])]
        place = next((k for k in ready if not isinstance(k[0].spec, Scan)), ready[0])
        waiting.remove(place)
        found.append(place)
    return found


def _needs(kernel: Kernel, before: Sequence[Kernel]) -> bool:
    written = {name for other in before for name in other.writes}
    return bool(written & {*kernel.reads, *kernel.writes})


def worked_out(kernels: Scheduled, outputs: Sequence[str]) -> dict[str, Map]:
    """The maps of a few tokens that scans work out themselves, by result."""
    scans = {k.name: [s.program for s in lower(k.spec, sch).steps] for k, sch in kernels if isinstance(k.spec, Scan)}
    return chosen([k for k, _ in kernels], scans, outputs)


@dataclass(frozen=True, slots=True)
class Launch:
    """One program of a step.

    Attributes:
        kernels: whose work it does: more than one where they do not need each other.
        counts: whether it makes the sequences longer by the new tokens.
    """

    step: Step
    bind: Bind
    kernels: tuple[DecodeKernel, ...]
    counts: bool


def together(
    kernels: Sequence[DecodeKernel], target: Target, cache_dir: Path, few: bool, counts: bool = True,
    before: Set[str] | None = None, kept: Set[str] = frozenset(),
) -> list[Launch]:  # fmt: skip
    """All programs of a step in launch order; of ``few`` new tokens, those as one that may be.

    The last counts the tokens too, where ``counts`` says that something is kept by position. They are a chain behind
    launches that wrote what was ``before``; None starts each when the one before has ended. What is ``kept`` is for
    the caller.
    """
    found, read = list[Work](), [loaded(s.program) for k in kernels for s in k.steps]
    for number, (kernel, step) in enumerate((k, s) for k in kernels for s in k.steps):
        others = set(kept).union(*(names for n, names in enumerate(read) if n != number))
        if not few or not _joins(found, kernel, step, others, before is not None):
            found.append((step, (kernel,)))
    last = counted(found[-1][0]) if few and counts and found else None
    if last is not None:
        found[-1] = last, found[-1][1]
    counting = [ENDS in {t.name for t in step.program.tensors} for step, _ in found]
    steps = chained([step for step, _ in found], before if before or len(found) > 1 else None)
    every = zip(steps, found, counting, strict=True)
    return [Launch(s, build(s, target, cache_dir), own, c) for s, (_, own), c in every]


Work = tuple[Step, tuple[DecodeKernel, ...]]
"""A program, and whose work it does."""


def _joins(found: list[Work], kernel: DecodeKernel, step: Step, needed: Set[str], early: bool) -> bool:
    """Whether a program has joined the last one that it may join; ``needed`` is what others read.

    Launches of a chain start ``early``.
    """
    for place in reversed(range(len(found))):
        other, own = found[place]
        behind = [s.program for s, _ in found[place + 1 :]]
        up, down = (all(apart(p, one.program) for p in behind) for one in (step, other))
        kinds = {(k.windows and k.windows.count) for k in (*own, kernel)}
        made = None
        if len(kinds) == 1 and all(agree(k.expressions, kernel.expressions) for k in own):
            if up and fit(other, step, early):
                made = joined(other, step)
            elif up or down:
                made = passed(other, step, needed)
        if made is not None:
            found.pop(place)
            found.insert(place if up else len(found), (made, (*own, kernel)))
            return True
    return False


def per_sequence(spec: AnySpec) -> AnySpec:
    """Block lists of each sequence, whose lengths differ."""
    if isinstance(spec, BlockList):
        return replace(spec, per_batch=True)
    if isinstance(spec, TiledAttention):
        lists = [None if p.listed is None else replace(p.listed, per_batch=True) for p in spec.pieces]
        return replace(spec, pieces=tuple(replace(p, listed=x) for p, x in zip(spec.pieces, lists, strict=True)))
    return spec
