"""What a plan costs before anything runs: formulas and numbers, memory, tiles, compiled resources, predicted time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsec.lower.lowered import Lowered
from sparsec.passes.ranges import Extent, extents
from sparsec.plan.cost import cost
from sparsec.plan.plan import Kernel, Plan
from sparsec.runtime.across import programs
from sparsec.runtime.order_price import OrderPrice, order_prices
from sparsec.runtime.peak import TrainingPeak, call_bytes, formula, training_peak
from sparsec.runtime.predict import predict
from sparsec.runtime.reading import factored, grid, named, ranges
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
        programs: program name -> its grid as a formula and in numbers.
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
        peak: bytes that a call holds beyond its inputs; of forward and backward where gradients were asked for.
        peak_formula: every buffer of the plan, without scratch.
        notes: what the planner decided, in sentences.
        training: what ``peak`` is made of with gradients; ``kernels`` are then those of both halves.
        order: what deterministic algorithms cost each kernel that may add atomically.
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
    training: TrainingPeak | None = None
    order: tuple[OrderPrice, ...] = ()

    @property
    def seconds(self) -> float:
        """The predicted time of all kernels in turn."""
        return sum(k.seconds for k in self.kernels)

    def to_dict(self) -> dict[str, Any]:
        """The explanation as JSON values."""
        return {**asdict(self), "offsets": [str(e) for e in self.offsets], "seconds": self.seconds}


def explain(
    compiled: Compiled,
    dims: Mapping[str, int],
    dtype: str,
    resources: bool = False,
    gradients: Sequence[str] = (),
) -> Explanation:
    """Explain a compiled variant at dims (with ``q_offset``); needs no GPU. ``resources`` compiles GPU kernels.

    ``gradients`` are the inputs whose gradients a backward computes; without any, the forward alone is explained.
    """
    halves = compiled.training.halves(dims, dtype, gradients).split if gradients else None
    plans = (halves.forward, halves.backward) if halves else (compiled.plan(dims, dtype),)
    training = training_peak(compiled, dims, dtype, gradients) if gradients else None
    inputs = sum(b.nbytes(dims) for b in plans[0].buffers if b.role == "input")
    return Explanation(
        compiled.variant.name, compiled.target.name, dtype, dict(dims),
        tuple(k for plan in plans for k in _kernels(compiled, plan, dims, resources)),
        training.peak if training else call_bytes(compiled, plans[0], dims),
        formula({b.name: b for plan in plans for b in plan.buffers if b.role != "input"}.values()), inputs,
        tuple(extents(compiled.variant, dims)), plans[0].notes, training,
        tuple(price for plan in plans for price in order_prices(compiled, plan, dims)),
    )  # fmt: skip


def _kernels(compiled: Compiled, plan: Plan, dims: Mapping[str, int], resources: bool) -> list[KernelExplanation]:
    plan, lowered = programs(compiled, plan, dims)
    found = []
    for kernel in plan.kernels:
        needs = _resources(lowered[kernel.name], compiled) if resources else {}
        schedule = compiled.schedule(kernel, dims)
        found.append(_kernel(compiled, kernel, lowered[kernel.name], schedule, dims, needs))
    return found


def _kernel(
    compiled: Compiled, kernel: Kernel, lowered: Lowered, schedule: Schedule, dims: Mapping[str, int], needs: Any
) -> KernelExplanation:
    formulas, params = cost(kernel.spec), {name: int(evaluate(value, dims)) for name, value in kernel.params}
    time = predict(kernel, lowered, schedule, compiled.target, dims)
    asked = {"flops": formulas.flops, "bytes": formulas.bytes, "pairs": formulas.pairs}
    launched = dict(params)
    for name, value in lowered.params:
        launched[name] = int(evaluate(value, launched))
    return KernelExplanation(
        kernel.name, type(kernel.spec).__name__, str(schedule),
        {name: (factored(named(f, kernel.params)), formulas.at(f, params)) for name, f in asked.items()},
        {step.program.name: grid(step.program, kernel.params, launched) for step in lowered.steps},
        round(time.work.steps), ranges(kernel.spec), time.seconds, time.floor, dict(time.parts), time.occupancy, needs,
    )  # fmt: skip


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
