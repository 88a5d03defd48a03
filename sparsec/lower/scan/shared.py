"""Heads that share keys, queries or states: the programs of a key, a query and a state per head, rewritten.

A head reads what its group has where it lies, so nothing is spread out in memory. Gradients of what is shared are fp32
per head first, and a last program adds up each group's. Where several queries ask one state, chunks backward, and those
of decays per channel, walk with a state per query.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scalars import add, ceil_div, mul
from sparsec.lower.scan.cell import padded, parameters
from sparsec.lower.scan.chunk.parts import needs_keyed
from sparsec.plan.states.scan_specs import Operand, Scan, ScanGrad, Writes
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor, TileOp, access_of
from sparsec.tile.rewrite import accessed, rewrite
from sparsec.tile.schedule import Schedule

ROWS = 16
"""Tokens of a program that adds up."""

Groups = Mapping[str, int]
"""By tensor, the states that share one of its heads."""

_FADES = {"key": "rows", "value": "cols"}


def each(spec: Scan) -> Scan:
    """The scan as if every state had a key and a query of its own, and where chunks ask for it every query a state."""
    heads = spec.writes.heads * _askers(spec)
    reads = tuple(replace(read, query_heads=None) for read in spec.reads)
    return replace(spec, writes=replace(spec.writes, heads=heads, key_heads=None), reads=reads)


def groups(spec: Scan) -> dict[str, int]:
    """What states of ``each`` share; empty where they share nothing."""
    return _groups(spec, _askers(spec))


def each_back(spec: ScanGrad) -> ScanGrad:
    """The adjoint as if every head of the only read had a state, which then makes its share of all gradients."""
    heads = spec.forward.writes.heads * _askers_back(spec)
    own = each(spec.forward)
    return replace(spec, forward=replace(own, writes=replace(own.writes, heads=heads)))


def groups_back(spec: ScanGrad) -> dict[str, int]:
    """As ``groups``, of what ``each_back`` makes."""
    return _groups(spec.forward, _askers_back(spec))


def _groups(spec: Scan, askers: int) -> dict[str, int]:
    w = spec.writes
    operands = [w.v, w.beta, w.decay, *(w.erase or ())]
    found = {x.name: askers for x in operands if x is not None} | ({w.initial: askers} if w.initial else {})
    found |= {w.k.name: askers * w.sharers} | {read.q.name: read.sharers for read in spec.reads}
    return {name: sharers for name, sharers in found.items() if sharers > 1}


def _askers(spec: Scan) -> int:
    """Heads of the only read that ask one state where decays are per channel, whose chunks have a read per state.

    1 where anyone asks for what states leave, which has no heads of reads.
    """
    alone = needs_keyed(spec.writes) and spec.final is None and spec.surprise is None
    return _ratio(spec) if alone else 1


def _askers_back(spec: ScanGrad) -> int:
    """Heads of the only read that ask one state; 1 where states' own gradients are met."""
    whole = spec.grad_final or spec.grad_initial or spec.surprise or spec.forward.surprise
    return 1 if whole else _ratio(spec.forward)


def _ratio(spec: Scan) -> int:
    """Query heads per state; 1 where first states are shared by the batch, whose heads lie in another dimension."""
    w = spec.writes
    alone = w.route is None and len(spec.reads) == 1 and (w.initial is None or w.initial_batched)
    return spec.reads[0].heads // w.heads if alone else 1


def lower(spec: Scan, schedule: Schedule, inner: Callable[[Scan, Schedule], Lowered]) -> Lowered:
    """A scan by the programs that ``inner`` makes where nothing is shared."""
    return _rewritten(inner(each(spec), schedule), groups(spec))


def lower_grad(spec: ScanGrad, schedule: Schedule, inner: Callable[[ScanGrad, Schedule], Lowered]) -> Lowered:
    """As ``lower``, of the adjoint."""
    summed = _sums(spec)
    found = _rewritten(inner(_alone(spec, {s.operand for s in summed}), schedule), groups_back(spec))
    sums = tuple(Step(s.program(spec.name), schedule) for s in summed)
    return replace(found, steps=found.steps + sums, scratch=(*found.scratch, *(as_scratch(s.shares) for s in summed)))


def _sums(spec: ScanGrad) -> list[_Sum]:
    """The gradients of what is shared."""
    w, askers = spec.forward.writes, _askers_back(spec)
    heads = w.heads * askers
    fades = _FADES.get(w.decay_kind, "")
    made = [(spec.grad_k, w.sharers * askers, "rows"), (spec.grad_v, askers, "cols"), (spec.grad_beta, askers, "")]
    made += [(spec.grad_decay, askers, fades), *((erase, askers, "rows") for erase in spec.grad_erase)]
    made += [(q, r.sharers, "rows") for q, r in zip(spec.grad_q, spec.forward.reads, strict=True)]
    return [_Sum(x, w, heads, n, last) for x, n, last in made if x is not None and n > 1]


def _alone(spec: ScanGrad, shared: set[Operand]) -> ScanGrad:
    """The adjoint of ``each_back``, with a share in place of every gradient of what is shared."""

    def share(operand: Operand | None) -> Operand | None:
        return _share(operand) if operand in shared and operand is not None else operand

    a, b = spec.grad_erase
    return replace(
        each_back(spec), grad_q=tuple(map(share, spec.grad_q)), grad_k=share(spec.grad_k), grad_v=share(spec.grad_v),
        grad_beta=share(spec.grad_beta), grad_decay=share(spec.grad_decay), grad_erase=(share(a), share(b)),
    )  # fmt: skip


def _share(operand: Operand) -> Operand:
    return Operand(f"{operand.name}_each", "float32")


@dataclass(frozen=True, slots=True)
class _Sum:
    """A gradient ``[B,N,heads / sharers]`` or, with ``last``, ``[…,D]`` or ``[…,DV]``: the sum over groups of heads."""

    operand: Operand
    writes: Writes
    heads: int
    sharers: int
    last: str

    @property
    def size(self) -> tuple[int, ...]:
        """Of the last dimension, if there is one."""
        return {"rows": (self.writes.rows,), "cols": (self.writes.cols,), "": ()}[self.last]

    @property
    def shares(self) -> Tensor:
        """fp32, per state."""
        return Tensor(_share(self.operand).name, "float32", ("B", self.writes.length, self.heads, *self.size))

    def program(self, title: str) -> Program:
        """One (tile of tokens, head, batch) per grid point."""
        w, heads = self.writes, self.heads // self.sharers
        with tile.Builder() as builder:
            out = Tensor(self.operand.name, self.operand.dtype, ("B", w.length, heads, *self.size))
            at = add(mul(tile.program_id(0), ROWS), tile.iota(builder.axis("m", ROWS)))
            dims = [tile.iota(builder.axis("d", padded(size))) for size in self.size]
            limits: dict[int, tile.Value] = {1: tile.param(w.length)}
            limits.update((3, size) for size in self.size if padded(size) != size)
            first, total = mul(tile.program_id(1), self.sharers), None
            for n in range(self.sharers):
                share = tile.load(self.shares, tile.program_id(2), at, add(first, n), *dims, bounds=limits)
                total = share if total is None else add(total, share)
            assert total is not None
            place = (tile.program_id(2), at, tile.program_id(1), *dims)
            tile.store(out, *place, value=tile.cast(total, out.dtype), bounds=limits)
            grid = (ceil_div(tile.param(w.length), ROWS), tile.const(heads), tile.param("B"))
            return builder.program(f"{title}_{self.operand.name}", [self.shares, out], parameters(w), grid)


def _rewritten(lowered: Lowered, shared: Groups) -> Lowered:
    rule = _Shared(shared)

    def step(own: Step) -> Step:
        tensors = [rule.tensor(t) for t in own.program.tensors]
        return replace(own, program=rewrite(own.program, rule, tensors), also=tuple(map(step, own.also)))

    return replace(lowered, steps=tuple(map(step, lowered.steps)))


@dataclass(frozen=True, slots=True)
class _Shared:
    """The rule: heads of what is shared are those of groups."""

    groups: Groups

    def tensor(self, tensor: Tensor) -> Tensor:
        """As it lies in memory."""
        if tensor.name not in self.groups:
            return tensor
        heads = int(tensor.shape[2]) // self.groups[tensor.name]
        return replace(tensor, shape=(*tensor.shape[:2], heads, *tensor.shape[3:]))

    def __call__(self, node: Node, args: tuple[Node, ...]) -> Node | None:
        """What takes a node's place."""
        if node.op not in (TileOp.LOAD, TileOp.STORE):
            return None
        access = access_of(node)
        sharers = self.groups.get(access.tensor.name, 1)
        if sharers == 1:
            return None
        places = [2] + [access.tensor.rank + n for n, dim in enumerate(access.bounded) if dim == 2]
        found = list(args)
        for place in places:
            found[place] = tile.apply(Fn.TRUNCDIV, found[place], sharers)
        return accessed(node, found, self.tensor(access.tensor))
