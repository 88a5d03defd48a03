"""Packed documents: the programs of a kernel rewritten so that every length is that of the program's own document.

The batch index of a program becomes the number of a document. Its lengths and its ``q_offset`` are loaded from a table
on the device, indices into packed buffers are shifted to where the document begins, and grid points past the end of
their document do nothing. Grids are sized for the longest document, so that a call's lengths are never read back.
A program whose rows know of no neighbours (``Step.flat``) runs once over the rows of all documents instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sparsec.lower.descriptors import without_roles
from sparsec.lower.lowered import Lowered, Scratch, Step
from sparsec.lower.scalars import add, both, emit
from sparsec.lower.scan import documents
from sparsec.plan.grad_specs import AnySpec, TiledGradKV
from sparsec.plan.packed.layout import (
    ALL,
    FIELDS,
    LENGTHS,
    MOST,
    TABLE,
    TOTAL,
    Layout,
    Packing,
    by_document,
    hosts,
    layout,
    parameters,
    room,
    total,
)
from sparsec.plan.plan import Kernel, PlanError
from sparsec.plan.specs import DIM
from sparsec.plan.states.scan_specs import Scan, ScanGrad
from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.fn import Fn
from sparsec.scalar.walk import substitute
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor, TileOp, access_of
from sparsec.tile.rewrite import Mapper, accessed, accesses, copies, rebuilt, rewrite
from sparsec.tile.schedule import Schedule

FEW = 4
"""Programs that share keys which all queries of a document see: documents are programs of their own already."""


def schedule(spec: AnySpec, found: Schedule) -> Schedule:
    """The schedule of a packed kernel: every share of every document has sums of its own, so that there are few."""
    found = without_roles(found, spec)
    if isinstance(spec, Scan | ScanGrad):
        return documents.packed_form(spec, found)
    batched = isinstance(spec, TiledGradKV) and spec.forward.pieces[spec.piece].batched
    return replace(found, splits=min(found.splits, FEW)) if batched else found


def known(spec: AnySpec, target: str) -> tuple[Schedule, ...]:
    """Schedules of packed kernels that the tuner tries right after the default."""
    found = documents.known(spec, target) if isinstance(spec, Scan | ScanGrad) else ()
    return tuple(map(by_pointers, found))


def by_pointers(found: Schedule) -> Schedule:
    """The schedule without descriptors: pointers need more registers and a pipeline, so their limits are lifted."""
    if not found.descriptors:
        return found
    return replace(found, descriptors=False, registers=0, stages=max(found.stages, 2))


def packed(kernel: Kernel, lowered: Lowered) -> tuple[Kernel, Lowered]:
    """A kernel of a packed plan, with its launch parameters over the call's dims, and its rewritten programs."""
    assert kernel.packed is not None
    packing = kernel.packed.packing
    exact = parameters(dict(kernel.params), dict(lowered.params), packing)
    bounds = {**exact, **parameters(dict(kernel.params), {**dict(lowered.params), **dict(lowered.limits)}, packing)}
    shapes = dict(kernel.packed.shapes) | {
        s.name: tuple(substitute(d, bounds) for d in s.shape) for s in lowered.scratch
    }
    layouts = {name: layout(shape, packing) for name, shape in shapes.items()}
    columns = len(FIELDS) + len(packing.visible)
    table = Tensor(TABLE, "int32", ("B", columns))
    _refuse_halves(lowered, layouts)
    steps = tuple(replace(_step(s, exact, layouts, table), flat=False) for s in lowered.steps)
    names = {name: var(MOST + name) for name in LENGTHS}
    shared = hosts([*exact.values(), *bounds.values(), *(d for shape in shapes.values() for d in shape)])
    names |= {name: var(DIM + name) for name in shared}
    scratch = tuple(
        Scratch(s.name, tuple(substitute(d, names) for d in room(shapes[s.name], packing)), s.dtype)
        for s in lowered.scratch
    )
    own = {name: bounds[name] for name, _ in kernel.params if name not in ("B", "q_offset")}
    known = {f"{DIM}{name}": var(name) for name in shared}
    params = tuple({**known, **_params(packing, own), **bounds}.items())
    return replace(kernel, params=params), Lowered(steps, scratch)


def _refuse_halves(lowered: Lowered, layouts: Mapping[str, Layout | None]) -> None:
    """Raises PlanError where one program runs over all documents and another per document: they agree on no places."""
    flat = [all(held) for s in lowered.steps if s.flat and (held := _along(s.program, layouts))]
    if any(flat) and not all(flat):
        raise PlanError(
            f"{lowered.steps[0].program.name}: packed documents give no gradient of a tensor that all share where a "
            "map also reads one that each has of its own; expand the latter to all tokens"
        )


def _along(program: Program, layouts: Mapping[str, Layout | None]) -> list[bool]:
    """Whether each buffer that documents do not share has their rows one after another; nothing where none has."""
    held = [layouts.get(t.name) for t in program.tensors]
    if all(found is None or found.along is None for found in held):
        return []
    return [found is None or found.along is not None for found in held]


def _params(packing: Packing, own: Mapping[str, Expr]) -> dict[str, Expr]:
    """Over the call's dims: TQ and TK of the longest document, those of all, and the kernel's own over all as one."""
    known = {f"{MOST}{name}": var(name) for name in LENGTHS}
    known |= {f"{TOTAL}{n}": var(f"{TOTAL}{n}") for n in (*LENGTHS, *range(len(packing.visible)))}
    every = {f"{ALL}{n}": total(value, packing) if by_document(value) else value for n, value in own.items()}
    return {**known, **every, f"{ALL}B": constant(1), f"{ALL}q_offset": constant(0)}


def _step(step: Step, params: Mapping[str, Expr], layouts: Mapping[str, Layout | None], table: Tensor) -> Step:
    """The step on packed buffers, without descriptors: a box of one would reach into the next document."""
    program, chosen = step.program, by_pointers(step.schedule)
    held = _along(program, layouts)
    if not held:
        return step
    if step.flat and all(held):
        return Step(_flat(program), chosen)
    return Step(_Segmented(program, params, layouts, table).program(), chosen)


def _flat(program: Program) -> Program:
    """The program over the rows of all documents."""

    def rule(node: Node, args: tuple[Node, ...]) -> Node | None:
        return tile.param(f"{ALL}{node.attrs[0]}", node.dtype) if node.op is TileOp.PARAM else None

    params = [(f"{ALL}{name}", dtype) for name, dtype in program.params]
    return rewrite(program, rule, program.tensors, params, rule)


class _Segmented:
    """One program on its way to its packed form."""

    def __init__(
        self, program: Program, params: Mapping[str, Expr], layouts: Mapping[str, Layout | None], table: Tensor
    ) -> None:
        self.old, self.params, self.layouts, self.table = program, params, layouts, table
        self.document = self._document()
        self.mapper = Mapper(program, self.rule, self.document.free)
        self.index: Node | None = None

    def _placed(self) -> list[tuple[Node, Layout]]:
        """The loads and stores of buffers that documents do not share."""
        found = [(node, self.layouts.get(access.tensor.name)) for node, access in accesses(self.old)]
        return [(node, at) for node, at in found if at is not None]

    def _document(self) -> Node:
        """The one batch index of the program; captured tensors are read at the nearest index that exists."""
        found = {_unclamped(n.args[at.batch]) for n, at in self._placed()}
        varying = [n for n in found if n.op is not TileOp.CONST]
        assert len(varying) == 1, f"{self.old.name} works on several batches at once: {varying}"
        return varying[0]

    def program(self) -> Program:
        """The packed program: under a condition, unless its grid is the same for every document."""
        with tile.Builder() as builder:
            alive = self._alive()
            if alive is None:
                self.mapper.region()
            else:
                tile.loop(0, alive, 1, [], self._guarded)
            tensors = [*(self._tensor(t) for t in self.old.tensors), self.table]
            return builder.program(self.old.name, tensors, self.old.params, copies(self.old.grid))

    def _guarded(self, index: Node) -> Sequence[Node]:
        """Everything depends on the guard's variable, which is 0, so that nothing is moved out of it."""
        self.index = index
        self.mapper.region()
        return []

    def _alive(self) -> Node | None:
        """Whether a grid point lies inside the grid that its document would have alone; None where all do."""
        inside: Node | None = None
        for d, extent in enumerate(self.old.grid):
            if any(self._differs(n) for n in tile.reachable([extent])):
                assert self.document.op is TileOp.PROGRAM_ID, f"{self.old.name}: its grid differs by document"
                number = tile.program_id(int(str(self.document.attrs[0])))
                here = tile.apply(Fn.LT, tile.program_id(d), self._device(extent, number))
                inside = both(here, inside)
        return inside

    def _differs(self, node: Node) -> bool:
        return node.op is TileOp.PARAM and by_document(self.params[str(node.attrs[0])])

    def _device(self, node: Node, document: Node) -> Node:
        """An extent of the grid as it is for one document."""
        if self._differs(node):
            return self._length(self.params[str(node.attrs[0])], document)
        return rebuilt(node, [self._device(a, document) for a in node.args])

    def rule(self, node: Node, args: tuple[Node, ...]) -> Node | None:
        """What takes a node's place."""
        if node.op is TileOp.PROGRAM_ID and self.index is not None:
            return add(rebuilt(node, ()), self.index)
        if node.op is TileOp.PARAM and self._differs(node) and self.document.free <= self.mapper.open:
            return self._length(self.params[str(node.attrs[0])], self.mapper(self.document))
        if node.op in (TileOp.LOAD, TileOp.STORE):
            return self._access(node, args)
        return None

    def _access(self, node: Node, args: tuple[Node, ...]) -> Node | None:
        """A load or store of a packed buffer, shifted to where the document begins."""
        access = access_of(node)
        at, rank = self.layouts.get(access.tensor.name), access.tensor.rank
        if at is None or at.along is None:
            return None
        start, moved = self._start(at, args[at.batch]), list(args)
        moved[at.batch] = tile.const(0)
        moved[at.along] = add(args[at.along], start)
        if at.along in access.bounded:
            place = rank + access.bounded.index(at.along)
            moved[place] = add(args[place], start)
        return accessed(node, moved, self._tensor(access.tensor))

    def _tensor(self, tensor: Tensor) -> Tensor:
        """The tensor with the extent of all documents, which no launch parameter of the program has."""
        at = self.layouts.get(tensor.name)
        if at is None or at.along is None:
            return tensor
        shape = list(tensor.shape)
        shape[at.batch], shape[at.along] = 1, f"{tensor.name}_rows"
        return replace(tensor, shape=tuple(shape))

    def _field(self, document: Node, column: int) -> Node:
        return tile.load(self.table, document, tile.const(column))

    def _length(self, expr: Expr, document: Node) -> Node:
        """A length of one document."""
        return self._emitted(expr, document, {"TQ": 1, "TK": 3, "q_offset": 4}, tile.param("B"))

    def _start(self, at: Layout, document: Node) -> Node:
        """Where a document begins."""
        if isinstance(at.start, int):
            return self._field(document, len(FIELDS) + at.start)
        assert at.start is not None
        return self._emitted(at.start, document, {"TQ": 0, "TK": 2}, document)

    def _emitted(self, expr: Expr, document: Node, columns: Mapping[str, int], count: Node) -> Node:
        env = {name: self._field(document, column) for name, column in columns.items()} | {"B": count}
        env |= {name: tile.param(f"{DIM}{name}", declare=True) for name in hosts([expr])}
        return tile.cast(emit(expr, env), "int32")


def _unclamped(index: Node) -> Node:
    """An index before it is brought between 0 and an extent."""
    while index.op is TileOp.MAP and index.attrs[0] in (Fn.MINIMUM, Fn.MAXIMUM):
        index = index.args[0]
    return index
