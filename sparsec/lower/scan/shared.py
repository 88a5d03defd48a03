"""States that share keys or queries (more value heads than key heads): the programs of one key per state, rewritten.

A state's head reads the key or query of its group where it lies, so nothing is spread out in memory. Gradients of what
is shared are fp32 per state first, and a last program adds up each group's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scalars import add, ceil_div, mul
from sparsec.lower.scan.cell import padded, parameters
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


def each(spec: Scan) -> Scan:
    """The scan as if every state had a key and a query of its own."""
    reads = tuple(replace(read, query_heads=None) for read in spec.reads)
    return replace(spec, writes=replace(spec.writes, key_heads=None), reads=reads)


def groups(spec: Scan) -> dict[str, int]:
    """What states of a scan share; empty where they share nothing."""
    found = {spec.writes.k.name: spec.writes.sharers} | {read.q.name: read.sharers for read in spec.reads}
    return {name: sharers for name, sharers in found.items() if sharers > 1}


def lower(spec: Scan, schedule: Schedule, inner: Callable[[Scan, Schedule], Lowered]) -> Lowered:
    """A scan by the programs that ``inner`` makes where nothing is shared."""
    return _rewritten(inner(each(spec), schedule), groups(spec))


def lower_grad(spec: ScanGrad, schedule: Schedule, inner: Callable[[ScanGrad, Schedule], Lowered]) -> Lowered:
    """As ``lower``, of the adjoint."""
    w, reads = spec.forward.writes, spec.forward.reads
    summed = [_Sum(spec.grad_k, w, w.heads, w.sharers)] if spec.grad_k and w.sharers > 1 else []
    queries = [q if q is None or r.sharers == 1 else _share(q) for q, r in zip(spec.grad_q, reads, strict=True)]
    for q, read in zip(spec.grad_q, reads, strict=True):
        summed += [_Sum(q, w, read.heads, read.sharers)] if q and read.sharers > 1 else []
    keys = _share(spec.grad_k) if spec.grad_k and w.sharers > 1 else spec.grad_k
    alone = replace(spec, forward=each(spec.forward), grad_q=tuple(queries), grad_k=keys)
    found = _rewritten(inner(alone, schedule), groups(spec.forward))
    sums = tuple(Step(s.program(spec.name), schedule) for s in summed)
    return replace(found, steps=found.steps + sums, scratch=(*found.scratch, *(as_scratch(s.shares) for s in summed)))


def _share(operand: Operand) -> Operand:
    return Operand(f"{operand.name}_each", "float32")


@dataclass(frozen=True, slots=True)
class _Sum:
    """A gradient ``[B,N,heads / sharers,D]``, the sum over groups of ``[B,N,heads,D]``."""

    operand: Operand
    writes: Writes
    heads: int
    sharers: int

    @property
    def shares(self) -> Tensor:
        """fp32, per state."""
        w = self.writes
        return Tensor(_share(self.operand).name, "float32", ("B", w.length, self.heads, w.rows))

    def program(self, title: str) -> Program:
        """One (tile of tokens, head, batch) per grid point."""
        w, heads = self.writes, self.heads // self.sharers
        with tile.Builder() as builder:
            out = Tensor(self.operand.name, self.operand.dtype, ("B", w.length, heads, w.rows))
            at = add(mul(tile.program_id(0), ROWS), tile.iota(builder.axis("m", ROWS)))
            dim = tile.iota(builder.axis("d", padded(w.rows)))
            limits: dict[int, tile.Value] = {1: tile.param(w.length)}
            limits |= {3: w.rows} if padded(w.rows) != w.rows else {}
            first, total = mul(tile.program_id(1), self.sharers), None
            for n in range(self.sharers):
                share = tile.load(self.shares, tile.program_id(2), at, add(first, n), dim, bounds=limits)
                total = share if total is None else add(total, share)
            assert total is not None
            place = (tile.program_id(2), at, tile.program_id(1), dim)
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
