"""A plan: a DAG of kernels and the buffers between them, with peak memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparsec.ir.node import Node
from sparsec.plan.grad_specs import AnySpec
from sparsec.plan.packed.layout import Packed
from sparsec.scalar.expr import Expr

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "int64": 8}


@dataclass(frozen=True, slots=True)
class Buffer:
    """A tensor that kernels read or write.

    Attributes:
        role: "input", "output" or "temporary".
    """

    name: str
    shape: tuple[Expr, ...]
    dtype: str
    role: str

    def size(self, dims: Mapping[str, int]) -> tuple[int, ...]:
        """The concrete shape under these dims."""
        from sparsec.scalar.evaluate import evaluate

        return tuple(int(evaluate(d, dims)) for d in self.shape)

    def nbytes(self, dims: Mapping[str, int]) -> int:
        """Bytes under these dims."""
        count = ITEM_BYTES[self.dtype]
        for extent in self.size(dims):
            count *= extent
        return count


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of a plan.

    Attributes:
        reads, writes: names of buffers.
        covers: the graph nodes (as the printer names them) that the kernel computes.
        params: the launch parameters as expressions over the declaration's dims and ``q_offset``.
        sources, results: (buffer, node, part) of what is read and written, so that the oracle can run this piece alone.
        packed: how documents lie in its buffers, in the plan of a packed call.
    """

    spec: AnySpec
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    covers: tuple[str, ...]
    params: tuple[tuple[str, Expr], ...]
    sources: tuple[tuple[str, Node, str], ...]
    results: tuple[tuple[str, Node, str], ...]
    packed: Packed | None = None

    @property
    def name(self) -> str:
        """The kernel's name, unique in its plan."""
        return self.spec.name


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Plan:
    """Kernels in an order in which they can run.

    Attributes:
        notes: sentences about what the planner decided and refused.
    """

    variant: str
    kernels: tuple[Kernel, ...]
    buffers: tuple[Buffer, ...]
    outputs: tuple[str, ...]
    notes: tuple[str, ...]

    def buffer(self, name: str) -> Buffer:
        """The buffer of this name."""
        return next(b for b in self.buffers if b.name == name)

    def text(self) -> str:
        """One line per buffer that the plan allocates and per kernel."""
        lines = [f"plan {self.variant}"]
        for b in self.buffers:
            if b.role != "input":
                lines.append(f"  {b.role} {b.name}: {b.dtype}[{', '.join(map(str, b.shape))}]")
        for k in self.kernels:
            lines.append(f"  {k.name} = {type(k.spec).__name__}({', '.join(k.reads)}) -> {', '.join(k.writes)}")
            lines.append(f"      covers {', '.join(k.covers)}")
        return "\n".join([*lines, *(f"  note: {n}" for n in self.notes)]) + "\n"


class PlanError(ValueError):
    """A variant that no cover of kernels computes; the message is the planner's refusals, one sentence each."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a schedule class does not take an anchor: a sentence."""

    reason: str
