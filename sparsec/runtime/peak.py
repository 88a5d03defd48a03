"""The bytes that a call holds at once beyond its inputs: forward alone, and forward with backward.

On a GPU a call allocates its outputs, and one block in which temporaries and scratch share room while they live apart.
On a CPU each buffer has room of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import TYPE_CHECKING

from sparsec.ir.variant import Variant
from sparsec.lower.lowered import Lowered
from sparsec.plan.plan import ITEM_BYTES, Buffer, Kernel, Plan
from sparsec.runtime.across import programs
from sparsec.runtime.arena import arena
from sparsec.runtime.kernel import Fixed
from sparsec.runtime.reading import factored
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import constant

if TYPE_CHECKING:
    from sparsec.runtime.compiled import Compiled

ROUNDING = 512
"""torch gives out device memory in multiples of so many bytes."""


@dataclass(frozen=True, slots=True)
class TrainingPeak:
    """Bytes that one forward and its backward hold.

    Attributes:
        forward: at once in the forward call, ``kept`` among them.
        kept: outputs, and what is saved for the backward.
        backward: at once in the backward call beside what is kept, gradients among them.
        kept_formula, backward_formula: the same over the dims; the second sums every buffer and leaves scratch out.
    """

    forward: int
    kept: int
    backward: int
    kept_formula: str
    backward_formula: str

    @property
    def peak(self) -> int:
        """The most bytes held at once beyond the inputs and the gradients of the outputs."""
        return max(self.forward, self.kept + self.backward)


def call_bytes(compiled: Compiled, plan: Plan, dims: Mapping[str, int]) -> int:
    """What one call of a plan holds beyond its inputs, once it was made before; scratch by the present schedules."""
    plan, lowered = programs(compiled, plan, dims)
    fixed = {k.name: launch_sizes(k, lowered[k.name], dims) for k in plan.kernels}
    outputs = results_bytes(plan, dims)
    if compiled.target.backend == "triton":
        return outputs + _rounded(arena(plan, dims, fixed)[1])
    temporaries = sum(b.nbytes(dims) for b in plan.buffers if b.role == "temporary")
    scratch = (prod(shape) * ITEM_BYTES[dtype] for own in fixed.values() for _, shape, dtype in own.scratch)
    return outputs + temporaries + sum(scratch)


def results_bytes(plan: Plan, dims: Mapping[str, int]) -> int:
    """The distinct outputs of a plan."""
    return sum(_rounded(plan.buffer(name).nbytes(dims)) for name in dict.fromkeys(plan.outputs))


def training_peak(compiled: Compiled, dims: Mapping[str, int], dtype: str, wrt: Sequence[str]) -> TrainingPeak:
    """Of one forward and backward for the gradients of the inputs ``wrt``. Raises PlanError without a backward."""
    halves = compiled.training.halves(dims, dtype, wrt).split
    results = [halves.forward.buffer(name) for name in dict.fromkeys(halves.forward.outputs)]
    return TrainingPeak(
        call_bytes(compiled, halves.forward, dims),
        results_bytes(halves.forward, dims),
        call_bytes(compiled, halves.backward, dims),
        formula(results),
        formula(b for b in halves.backward.buffers if b.role != "input"),
    )


def float_inputs(variant: Variant) -> tuple[str, ...]:
    """The inputs that can have gradients."""
    return tuple(name for name, spec in variant.inputs.items() if spec.dtype != "int32")


def formula(buffers: Iterable[Buffer]) -> str:
    """The bytes of some buffers together, over the dims."""
    sizes = [reduce(lambda a, b: a * b, b.shape, constant(ITEM_BYTES[b.dtype])) for b in buffers]
    return factored(reduce(lambda a, b: a + b, sizes, constant(0)))


def launch_sizes(kernel: Kernel, lowered: Lowered, dims: Mapping[str, int]) -> Fixed:
    """The launch parameters and scratch buffers of a kernel that need not be built."""
    params = {name: int(evaluate(value, dims)) for name, value in kernel.params}
    params |= {name: int(evaluate(value, params)) for name, value in lowered.params}
    scratch = [(s.name, [int(evaluate(d, params)) for d in s.shape], s.dtype) for s in lowered.scratch]
    return Fixed(params, tuple(scratch))


def _rounded(size: int) -> int:
    return -(-size // ROUNDING) * ROUNDING
