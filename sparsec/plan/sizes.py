"""Which sizes a kernel is built for (heads, head dims) and which it takes at launch (lengths, batch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparsec.ir.node import Node
from sparsec.plan.plan import PlanError
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.fn import Fn
from sparsec.scalar.walk import postorder, substitute, variables


@dataclass(frozen=True, slots=True)
class Sizes:
    """The static dims of one plan, and the dtype of its "float" tensors.

    Attributes:
        static: heads and head dims by name; no length, so that a new length needs no new kernel.
        dtype: float32, float16 or bfloat16.
    """

    static: Mapping[str, int]
    dtype: str

    def value(self, expr: Expr) -> int:
        """A count of heads, columns or parts as a number; PlanError where the declaration leaves it to the call."""
        if unknown := sorted(variables(expr).keys() - self.static.keys()):
            said = f"`{expr}` has to be a number when kernels are built, and `{unknown[0]}` is a length of the call"
            raise PlanError(f"{said}. Fix: write the number in its place in the declaration, or make it a knob")
        return int(evaluate(expr, self.static))

    def number(self, expr: Expr) -> float:
        """A scale as a number."""
        return float(evaluate(expr, self.static))

    def close(self, expr: Expr | None) -> Expr | None:
        """The expression with the static dims put in. PlanError where it rounds down what is no whole number."""
        if expr is None:
            return None
        if rounds := [x for x in postorder(expr) if x.head in (Fn.FLOORDIV, Fn.MOD) and x.kind == "float"]:
            said = f"`{rounds[0]}`: // and % have a kernel of whole numbers only; the oracle has the others"
            raise PlanError(f"{said}. Fix: round nothing down but positions, indices and counts")
        return substitute(expr, {name: constant(value) for name, value in self.static.items()})

    def dtype_of(self, node: Node) -> str:
        """The concrete dtype of a tensor node."""
        return self.dtype if node.dtype == "float" else node.dtype


def static_names(inputs: Sequence[Node]) -> frozenset[str]:
    """The dims that inputs use as heads or columns: the last two of four, or of three without a batch; else the last.

    A dim that stands second of four somewhere is a length, also where it is the last of another input, unless it counts
    heads elsewhere: third of four.
    """
    found: set[str] = set()
    heads = {name for node in inputs if len(node.shape) == 4 for name in variables(node.shape[2])}
    lengths = {"B", "T", "TQ", "TK"}
    for node in inputs:
        rank = len(node.shape)
        lengths |= {name for dim in node.shape[:2] for name in variables(dim)} if rank >= 4 else set()
        two = rank >= 4 or (rank == 3 and node.shape[0] is not var("B"))
        for dim in node.shape[max(rank - 2, 1) if two else rank - 1 :]:
            found |= variables(dim).keys()
    return frozenset(found - (lengths - heads))
