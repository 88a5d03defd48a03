"""What a plan costs before anything runs: formulas and numbers, memory, tiles, compiled resources, predicted time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsec.lower.lowered import Lowered
from sparsec.lower.registry import lower_kernel
from sparsec.passes.ranges import Extent, extents
from sparsec.plan.cost import cost
from sparsec.plan.memory import peak_bytes
from sparsec.plan.plan import ITEM_BYTES, Kernel
from sparsec.runtime.predict import predict
from sparsec.runtime.reading import factored, grid, ranges
from sparsec.scalar.evaluate import evaluate
from sparsec.tile.schedule import Schedule

if TYPE_CHECKING:
    from sparsec.backends.triton.resources import Resources
    from sparsec.runtime.compiled import Compiled


@dataclass(frozen=True, slots=True)
class KernelExplanation:
    """One kernel: formulas as text with their values, the tiles it visits, what it needs and how long it should take.

    Attributes:
        formulas: name -> (formula, value): flops, bytes, pairs.
        programs: program name -> its grid as a formula.
        steps: loop iterations (tiles of keys) over the whole grid.
        reads: what keys a tile of queries i_lo … i_hi reads, piece by piece.
        resources: per program; {} where nothing was compiled, a sentence where it failed.
    """

    name: str
    kind: str
    schedule: str
    formulas: Mapping[str, tuple[str, int]]
    programs: Mapping[str, str]
    steps: int
    reads: tuple[str, ...]
    seconds: float
    floor_s: float
    parts: Mapping[str, float]
    occupancy: float
    resources: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A plan at given dims on a target.

    Attributes:
        peak: bytes of temporaries, outputs and scratch alive at once; ``peak_formula`` sums every buffer of the plan.
        notes: what the planner decided, in sentences.
    """

    variant: str
    target: str
    dtype: str
    dims: Mapping[str, int]
    kernels: tuple[KernelExplanation, ...]
    peak: int
    peak_formula: str
    inputs: int
    offsets: tuple[Extent, ...]
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """The predicted time of all kernels in turn."""
        return sum(k.seconds for k in self.kernels)

    def to_dict(self) -> dict[str, Any]:
        """The explanation as JSON values."""
        return {**asdict(self), "offsets": [str(e) for e in self.offsets], "seconds": self.seconds}


def explain(compiled: Compiled, dims: Mapping[str, int], dtype: str, resources: bool = False) -> Explanation:
    """Explain a compiled variant at dims (with ``q_offset``); needs no GPU. ``resources`` compiles GPU kernels."""
    plan, found, scratch = compiled.plan(dims, dtype), [], {}
    for kernel in plan.kernels:
        schedule = compiled.schedule(kernel, dims)
        lowered = lower_kernel(kernel.spec, schedule)
        needs = _resources(lowered, compiled) if resources else {}
        found.append(_kernel(compiled, kernel, lowered, schedule, dims, needs))
        scratch[kernel.name] = _scratch_bytes(kernel, lowered, dims)
    sizes = {b.name: b.nbytes(dims) for b in plan.buffers if b.role == "input"}
    return Explanation(
        compiled.variant.name, compiled.target.name, dtype, dict(dims), tuple(found),
        peak_bytes(plan, dims, scratch=scratch), _peak_formula(plan.buffers), sum(sizes.values()),
        tuple(extents(compiled.variant, dims)), plan.notes,
    )  # fmt: skip


def _kernel(
    compiled: Compiled, kernel: Kernel, lowered: Lowered, schedule: Schedule, dims: Mapping[str, int], needs: Any
) -> KernelExplanation:
    formulas, params = cost(kernel.spec), {name: int(evaluate(value, dims)) for name, value in kernel.params}
    time = predict(kernel, lowered, schedule, compiled.target, dims)
    named = {"flops": formulas.flops, "bytes": formulas.bytes, "pairs": formulas.pairs}
    return KernelExplanation(
        kernel.name, type(kernel.spec).__name__, str(schedule),
        {name: (factored(f), formulas.at(f, params)) for name, f in named.items()},
        {step.program.name: grid(step.program) for step in lowered.steps}, round(time.work.steps),
        ranges(kernel.spec), time.seconds, time.floor, dict(time.parts), time.occupancy, needs,
    )  # fmt: skip


def _scratch_bytes(kernel: Kernel, lowered: Lowered, dims: Mapping[str, int]) -> int:
    params = {name: int(evaluate(value, dims)) for name, value in kernel.params}
    params |= {name: int(evaluate(value, params)) for name, value in lowered.params}
    total = 0
    for s in lowered.scratch:
        count = ITEM_BYTES[s.dtype]
        for extent in s.shape:
            count *= int(evaluate(extent, params))
        total += count
    return total


def _peak_formula(buffers: Any) -> str:
    """The bytes of every temporary and output; an upper bound where lifetimes do not overlap."""
    from functools import reduce

    from sparsec.scalar.expr import constant

    sizes = [reduce(lambda a, b: a * b, b.shape, constant(ITEM_BYTES[b.dtype])) for b in buffers if b.role != "input"]
    return factored(reduce(lambda a, b: a + b, sizes, constant(0)))


def _resources(lowered: Lowered, compiled: Compiled) -> dict[str, Any]:
    """Registers, spills and shared memory of each program, compiled for the target; a sentence where that fails."""
    if compiled.target.backend != "triton":
        return {}
    from sparsec.backends.triton.arguments import signature
    from sparsec.backends.triton.compile import CompileError, Job, compile_all
    from sparsec.backends.triton.emit import emit

    jobs = []
    for program, schedule in ((s.program, s.schedule) for s in lowered.steps):
        how = (compiled.target.arch, schedule.warps, schedule.stages, schedule.registers)
        jobs.append(Job(emit(program, schedule), program.name, signature(program, schedule), *how))
    made = compile_all(jobs, Path(compiled.cache_dir) / "aot")
    return {
        job.name: str(m) if isinstance(m, CompileError) else _as_dict(m.resources)
        for job, m in zip(jobs, made, strict=True)
    }


def _as_dict(found: Resources) -> dict[str, Any]:
    return asdict(found)
