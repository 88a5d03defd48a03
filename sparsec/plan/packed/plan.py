"""The plan of a packed call: the same kernels over buffers in which documents follow one another."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from sparsec.ir.dims import fixed
from sparsec.ir.lengths import Lengths
from sparsec.ir.variant import Variant
from sparsec.plan.grad_specs import TiledGradKV
from sparsec.plan.packed.layout import FIELDS, TABLE, Packed, Packing, by_document, room
from sparsec.plan.plan import Buffer, Kernel, Plan, PlanError
from sparsec.plan.specs import BlockList
from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.fn import Fn
from sparsec.scalar.walk import postorder, variables

Spec = TypeVar("Spec")

COUNTED = (Fn.ADD, Fn.SUB, Fn.MUL, Fn.FLOORDIV)
"""What the number of rows of an input may be made of."""


def packing_of(variant: Variant, lengths: Lengths) -> Packing:
    """How documents of a variant are packed.

    Raises:
        PlanError: the declaration has an input that documents can neither share nor follow one another in.
    """
    own = ((lengths.keys, var("TK")), (lengths.queries, var("TQ")))
    dims = {str(dim.value): length for dim, length in own if dim is not None and dim.head == "var"}
    for name, expr in fixed(variant).items():
        if name not in dims and variables(expr).keys() & dims.keys():
            dims[name] = Packing(tuple(dims.items())).of(expr)
    packing = Packing(tuple(dims.items()))
    visible: list[Expr] = []
    for name, spec in variant.inputs.items():
        own_lengths = [packing.of(dim) for dim in spec.shape if by_document(packing.of(dim))]
        batches = [dim for dim in spec.shape if dim is var("B")]
        if own_lengths and (len(own_lengths) > 1 or len(batches) != 1):
            why = "several lengths" if len(own_lengths) > 1 else "a length but no batch B"
            raise PlanError(f"{variant.name} takes no packed documents: `{name}`, declared {spec}, has {why}.")
        visible += [e for e in own_lengths if e.head != "var" and e not in visible]
    for length in visible:
        if any(x.args and x.head not in COUNTED for x in postorder(length)):
            raise PlanError(f"{variant.name} takes no packed documents: an input has {length} rows.")
    return replace(packing, visible=tuple(visible))


def packed_plan(plan: Plan, packing: Packing) -> Plan:
    """The plan with every buffer laid out for documents that follow one another, and the table that says where.

    Shapes and launch parameters are over the dims of a packed call: the declaration's, TQ and TK as those of
    the longest document, and the rows of all documents under ``total_TQ``, ``total_TK`` and ``total_<column>``.
    """
    shapes = {b.name: _by_batch(tuple(packing.of(d) for d in b.shape)) for b in plan.buffers}
    buffers = [replace(b, shape=room(shapes[b.name], packing)) for b in plan.buffers]
    table = Buffer(TABLE, (var("B"), constant(len(FIELDS) + len(packing.visible))), "int32", "input")
    kernels = tuple(_kernel(k, packing, shapes) for k in plan.kernels)
    return replace(plan, kernels=kernels, buffers=(*buffers, table))


def _by_batch(shape: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """The shape of a block list that a dense batch shares, for one per document."""
    alone = all(dim is not var("B") for dim in shape) and any(map(by_document, shape))
    return (var("B"), *shape[1:]) if alone else shape


def _kernel(kernel: Kernel, packing: Packing, shapes: dict[str, tuple[Expr, ...]]) -> Kernel:
    touched = dict.fromkeys((*kernel.reads, *kernel.writes))
    found = Packed(packing, tuple((name, shapes[name]) for name in touched if name in shapes))
    return replace(kernel, spec=_ragged(kernel.spec), reads=(*kernel.reads, TABLE), packed=found)


def _ragged(spec: Spec) -> Spec:
    """The spec where every batch has lengths of its own: block lists are made for each."""
    if isinstance(spec, tuple):
        return tuple(_ragged(x) for x in spec)  # type: ignore[return-value]
    if not is_dataclass(spec) or isinstance(spec, Expr):
        return spec
    changed: dict[str, Any] = {f.name: _ragged(getattr(spec, f.name)) for f in fields(spec)}
    if isinstance(spec, BlockList):
        changed["per_batch"] = True
    if isinstance(spec, TiledGradKV):
        changed["ragged"] = True
    same = all(changed[f.name] is getattr(spec, f.name) for f in fields(spec))
    return spec if same else replace(spec, **changed)  # type: ignore[type-var]
