"""Gradients of merges: those of the branches, of the gates, and of the branches' log-sum-exps, row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

from sparsec.lower.combine import numbers
from sparsec.lower.pieces import Span, spans
from sparsec.lower.scalars import add, ceil_div, emit, mul, sub
from sparsec.lower.softmax import LOG2E, NOTHING
from sparsec.plan.grad_specs import CombineGrad
from sparsec.scalar.derivative import derivative
from sparsec.scalar.expr import var
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule

GATE = var("x0", "float")


@dataclass(frozen=True, slots=True)
class Rows:
    """A tile of rows of one head.

    Attributes:
        tensors, place: what is touched, and where its rows lie.
        read: rows ``[m]`` of a tensor, or their columns in a span, in fp32.
        write: the same for storing, rounded to the tensor's dtype.
    """

    spec: CombineGrad
    values: list[Span]
    tensors: dict[str, Tensor]
    place: tuple[Node, ...]
    read: Callable[..., Node]
    write: Callable[..., None]

    def dot(self, values: Sequence[Node]) -> Node:
        """Rows of a product with the merge's gradient, summed over the value dim."""
        parts = [mul(x, self.read(self.spec.grad, e)) for x, e in zip(values, self.values, strict=True)]
        return reduce(add, [tile.reduce("sum", x, e.axis) for x, e in zip(parts, self.values, strict=True)])


def lower(spec: CombineGrad, schedule: Schedule) -> Program:
    """One (tile of rows, head, batch) per grid point."""
    forward = spec.forward
    with tile.Builder() as builder:
        rows = builder.axis("m", schedule.rows)
        values, tensors = spans(builder, "e", forward.value_dim, schedule), _tensors(spec)
        length = tile.param("TQ")
        row = add(mul(tile.program_id(0), schedule.rows), tile.iota(rows))
        place = (tile.program_id(2), row, tile.program_id(1))

        def read(name: str, *span: Span) -> Node:
            index = (e.index() for e in span)
            return tile.cast(tile.load(tensors[name], *place, *index, bounds={1: length}), "float32")

        def write(name: str, value: Node, *span: Span) -> None:
            index, target = (e.index() for e in span), tensors[name]
            tile.store(target, *place, *index, value=tile.cast(value, target.dtype), bounds={1: length})

        _RULES[forward.fn](Rows(spec, values, tensors, place, read, write))
        params = [(name, "int32") for name in ("B", "TQ", "TK", "q_offset")]
        grid = (ceil_div(length, schedule.rows), tile.const(forward.heads), tile.param("B"))
        return builder.program(spec.name, list(tensors.values()), params, grid)


def _tensors(spec: CombineGrad) -> dict[str, Tensor]:
    """Buffers in launch order: what the merge read and wrote, the gradients given, the gradients made."""
    forward = spec.forward
    wide: tuple[str | int, ...] = ("B", "TQ", forward.heads, forward.value_dim)
    found = [(name, dtype, wide) for name, dtype in forward.typed if forward.fn != "sum"]
    dtypes = forward.gate_dtypes or (forward.dtype,) * len(forward.gates)
    few = (*wide[:3], *((len(forward.branches),) * (forward.fn == "weighted")))
    found += [(name, dtype, few) for name, dtype in zip(forward.gates, dtypes, strict=True)]
    found += [(name, "float32", wide[:3]) for name in (*forward.lses, spec.lse, spec.lse_grad) if name is not None]
    found += [(spec.out, forward.dtype, wide)] if spec.out is not None else []
    found += [(spec.grad, spec.grad_dtype, wide)]
    found += [(name, spec.branch_grad_dtype, wide) for name in spec.branch_grads if name is not None]
    pairs = zip(spec.gate_grads, dtypes, strict=True)
    found += [(name, dtype, few) for name, dtype in pairs if name is not None]
    found += [(name, "float32", wide[:3]) for name in (*spec.lse_grads, *spec.deltas) if name is not None]
    return {name: Tensor(name, dtype, shape) for name, dtype, shape in found}


def _shares(at: Rows, shares: Sequence[Node | None]) -> None:
    """d branch = its share (None: all) of the gradient; and its rowdot with the branch."""
    spec = at.spec
    deltas = spec.deltas or (None,) * len(spec.branch_grads)
    for name, share, branch, delta in zip(spec.branch_grads, shares, spec.forward.branches, deltas, strict=True):
        products = []
        for span in at.values if name is not None else ():
            grad = at.read(spec.grad, span)
            grad = tile.cast(grad if share is None else mul(share, grad), spec.branch_grad_dtype)
            at.write(name, grad, span)
            if delta is not None:
                product = mul(tile.cast(grad, "float32"), at.read(branch, span))
                products.append(tile.reduce("sum", product, span.axis))
        if delta is not None:
            at.write(delta, reduce(add, products))


def _gate(at: Rows, number: int) -> tuple[Node, Node]:
    """The value of a gate's function, and its derivative."""
    gate, fn = at.read(at.spec.forward.gates[number]), at.spec.forward.gate_fn
    if fn is None:
        return gate, tile.const(1.0)
    return emit(fn, {"x0": gate}), emit(derivative(fn, GATE), {"x0": gate})


def _sum(at: Rows) -> None:
    _shares(at, [None] * len(at.spec.branch_grads))


def _gated(at: Rows) -> None:
    gates = [_gate(at, k) for k in range(len(at.spec.forward.gates))]
    _shares(at, [value for value, _ in gates])
    for number, name in enumerate(at.spec.gate_grads):
        if name is not None:
            branch = at.spec.forward.branches[number]
            at.write(name, mul(gates[number][1], at.dot([at.read(branch, e) for e in at.values])))


def _weighted(at: Rows) -> None:
    (made,), forward = at.spec.gate_grads, at.spec.forward

    def weight(name: str, *last: int) -> Node:
        return tile.cast(tile.load(at.tensors[name], *at.place, *last, bounds={1: tile.param("TQ")}), "float32")

    _shares(at, numbers(forward, weight))
    for number, branch in enumerate(forward.branches if made is not None else ()):
        target = at.tensors[str(made)]
        value = tile.cast(at.dot([at.read(branch, e) for e in at.values]), target.dtype)
        tile.store(target, *at.place, number, value=value, bounds={1: tile.param("TQ")})


def _convex(at: Rows) -> None:
    value, change = _gate(at, 0)
    _shares(at, [value, sub(tile.const(1.0), value)])
    (name,), (first, second) = at.spec.gate_grads, at.spec.forward.branches
    if name is not None:
        difference = [sub(at.read(first, e), at.read(second, e)) for e in at.values]
        at.write(name, mul(change, at.dot(difference)))


def _lse(at: Rows) -> None:
    """Shares of the joint softmax; 0 in rows that are empty everywhere."""
    spec = at.spec
    out, joint = spec.out, spec.lse
    assert out is not None and joint is not None, "the gradient of a joint softmax reads its output and log-sum-exp"
    total = at.read(joint)
    empty = tile.apply(Fn.LE, total, NOTHING)
    total = tile.apply(Fn.WHERE, empty, 0.0, total)
    weights = [tile.apply(Fn.EXP2, mul(sub(at.read(lse), total), LOG2E)) for lse in spec.forward.lses]
    weights = [tile.apply(Fn.WHERE, empty, 0.0, w) for w in weights]
    _shares(at, weights)
    for name, weight, branch in zip(spec.lse_grads, weights, spec.forward.branches, strict=True):
        if name is not None:
            change = at.dot([sub(at.read(branch, e), at.read(out, e)) for e in at.values])
            change = change if spec.lse_grad is None else add(change, at.read(spec.lse_grad))
            at.write(name, mul(weight, change))


_RULES: dict[str, Callable[[Rows], None]] = {
    "sum": _sum,
    "gated": _gated,
    "weighted": _weighted,
    "convex": _convex,
    "lse": _lse,
}


def default(spec: CombineGrad, target: str) -> Schedule:
    """A few rows per program: the kernel only moves memory."""
    triton = target.startswith("triton")
    return Schedule(rows=16, warps=4, stages=2, lanes=("e",), split_dims=triton)


def space(spec: CombineGrad, target: str) -> dict[str, tuple[object, ...]]:
    """Rows per program, and warps."""
    rows = (8, 16, 32)
    return {"rows": rows, "warps": (1, 2, 4, 8)} if target.startswith("triton") else {"rows": rows}
