"""What every part of an exported file needs: the plan under its schedules, and expressions as Python text."""

from __future__ import annotations

import keyword
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from sparsec.ir.variant import Variant
from sparsec.lower.descriptors import without_roles
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.registry import lower_kernel
from sparsec.plan.packed.layout import TOTAL
from sparsec.plan.plan import Kernel, Plan
from sparsec.plan.sizes import static_names
from sparsec.runtime.compiled import Compiled
from sparsec.runtime.target import Target
from sparsec.scalar.expr import Expr, constant
from sparsec.scalar.walk import substitute

TAKEN = frozenset(
    {"launch", "expect", "expect_indices", "noise", "digest", "distance", "run", "device", "grid", "torch", "DEVICE"}
    | {"any", "fitting", "min", "max", "ValueError"}
    | {"ends", "longest", "counted", "documents", "ends_k", "most_k", "q_len", "k_len"}
)
"""Names that mean something else in a launcher; the last in one of packed documents."""


@dataclass(frozen=True)
class Exported:
    """A plan that is being written to a file.

    Attributes:
        dims: every dim of the declaration and ``q_offset``; those that no kernel was built for stay names.
    """

    compiled: Compiled
    dims: Mapping[str, int]
    dtype: str

    @property
    def variant(self) -> Variant:
        """The declaration."""
        return self.compiled.variant

    @property
    def target(self) -> Target:
        """Where the kernels run."""
        return self.compiled.target

    @cached_property
    def plan(self) -> Plan:
        """The plan at the fixed dims."""
        return self.compiled.plan(self.dims, self.dtype)

    @cached_property
    def kernels(self) -> list[tuple[Kernel, Lowered]]:
        """Each kernel under its schedule; by pointers, which any strides allow, where it would use descriptors."""
        own = [(k, without_roles(self.compiled.schedule(k, self.dims), k.spec)) for k in self.plan.kernels]
        schedules = [(k, replace(schedule, descriptors=False)) for k, schedule in own]
        return [(kernel, lower_kernel(kernel.spec, schedule)) for kernel, schedule in schedules]

    @property
    def without_descriptors(self) -> list[str]:
        """The programs that would read through descriptors if sparsec ran them."""
        if self.target.backend != "triton":
            return []
        from sparsec.backends.triton.arguments import descriptor_arguments

        own = [lower_kernel(k.spec, self.compiled.schedule(k, self.dims)) for k in self.plan.kernels]
        steps = [step for lowered in own for step in lowered.steps]
        return [s.program.name for s in steps if s.schedule.descriptors and descriptor_arguments(s.program, s.schedule)]

    @property
    def steps(self) -> list[Step]:
        """Every program in launch order."""
        return [step for _, lowered in self.kernels for step in lowered.steps]

    @cached_property
    def free(self) -> frozenset[str]:
        """Dims that no kernel was built for: lengths and batch."""
        return frozenset(self.dims) - static_names(self.compiled.graph.parameters)

    def text(self, expr: Expr) -> str:
        """An expression with the fixed dims put in, as Python."""
        fixed = {n: constant(d) for n, d in self.dims.items() if n not in self.free}
        return str(substitute(expr, fixed)).replace("minimum(", "min(").replace("maximum(", "max(")

    def shape(self, shape: Sequence[Expr]) -> str:
        """A shape as a Python tuple."""
        inner = ", ".join(self.text(d) for d in shape)
        return f"({inner},)" if len(shape) == 1 else f"({inner})"


def named(name: str) -> str:
    """A buffer's name as a Python variable of the launcher."""
    return f"{name}_" if name in TAKEN or name.startswith(TOTAL) or keyword.iskeyword(name) else name
