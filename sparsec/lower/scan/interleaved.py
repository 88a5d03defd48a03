"""Several writes per token: the programs of a scan over n rows per token, rewritten to read tokens where they lie.

Row r of the scan is step r % n of token r // n. What steps bring lies beside that of the others, as heads; decays
belong to the first step, and queries and outputs to the last (those of reads before the write to the first): other
rows load zeros and store nothing. So every loop order serves, and nothing is spread out in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sparsec.lower.lowered import Lowered, Scratch, Step
from sparsec.lower.scalars import add, both, mul
from sparsec.plan.states.scan_specs import Operand, Scan, ScanGrad, Writes
from sparsec.scalar.expr import Expr, var
from sparsec.scalar.fn import Fn
from sparsec.scalar.walk import substitute
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor, TileOp, access_of
from sparsec.tile.rewrite import accessed, rewrite, stored
from sparsec.tile.schedule import Schedule

EVERY = -1
"""The place of what every step has."""

Places = Mapping[str, int]
"""By tensor, the step that it belongs to, or ``EVERY``."""


def lower(spec: Scan, schedule: Schedule, inner: Callable[[Scan, Schedule], Lowered]) -> Lowered:
    """A scan by the programs that ``inner`` makes of one step per token."""
    return _rewritten(spec.writes, _places(spec), inner(_single(spec), schedule))


def lower_grad(spec: ScanGrad, schedule: Schedule, inner: Callable[[ScanGrad, Schedule], Lowered]) -> Lowered:
    """As ``lower``, of the adjoint."""
    single = replace(spec, forward=_single(spec.forward))
    return _rewritten(spec.forward.writes, _places(spec.forward) | _grad_places(spec), inner(single, schedule))


def _single(spec: Scan) -> Scan:
    return replace(spec, writes=replace(spec.writes, steps=1))


def _places(spec: Scan) -> dict[str, int]:
    w = spec.writes
    found = _named(EVERY, w.k, w.v, w.beta, *(w.erase or ())) | _named(0, w.decay)
    for read in spec.reads:
        found |= _named(_read_at(w, read.when), read.q, read.out)
    return found


def _grad_places(spec: ScanGrad) -> dict[str, int]:
    w = spec.forward.writes
    found = _named(EVERY, spec.grad_k, spec.grad_v, spec.grad_beta, *spec.grad_erase) | _named(0, spec.grad_decay)
    for read, grad, grad_q in zip(spec.forward.reads, spec.grads, spec.grad_q, strict=True):
        found |= _named(_read_at(w, read.when), grad, grad_q)
    return found


def _read_at(w: Writes, when: str) -> int:
    return w.steps - 1 if when == "after" else 0


def _named(place: int, *operands: Operand | None) -> dict[str, int]:
    return {operand.name: place for operand in operands if operand is not None}


def _rewritten(w: Writes, places: Places, lowered: Lowered) -> Lowered:
    """The programs, and scratch and launch parameters of so many rows."""
    rows = {w.length: w.steps * var(w.length)}

    def longer(pairs: Sequence[tuple[str, Expr]]) -> tuple[tuple[str, Expr], ...]:
        return tuple((name, substitute(value, rows)) for name, value in pairs)

    scratch = tuple(Scratch(s.name, tuple(substitute(d, rows) for d in s.shape), s.dtype) for s in lowered.scratch)
    steps = tuple(_step(step, _Interleaved(w, places)) for step in lowered.steps)
    return Lowered(steps, scratch, longer(lowered.params), longer(lowered.limits))


def _step(step: Step, rule: _Interleaved) -> Step:
    tensors = [rule.tensor(t) for t in step.program.tensors]
    return replace(step, program=rewrite(step.program, rule, tensors, grid=rule))


@dataclass(frozen=True, slots=True)
class _Interleaved:
    """The rule: what becomes of a length, and of a load or store."""

    writes: Writes
    places: Places

    def tensor(self, tensor: Tensor) -> Tensor:
        """As it lies in memory; scratch has a row per step, which no launch parameter counts."""
        w, shape = self.writes, list(tensor.shape)
        place = self.places.get(tensor.name)
        if place is None:
            shape = [f"{w.length}_rows" if d == w.length else d for d in shape]
        elif place == EVERY:
            shape[2] = w.steps * int(shape[2])
        return replace(tensor, shape=tuple(shape))

    def __call__(self, node: Node, args: tuple[Node, ...]) -> Node | None:
        """What takes a node's place."""
        if node.op is TileOp.PARAM and node.attrs[0] == self.writes.length:
            return mul(tile.param(self.writes.length), self.writes.steps)
        if node.op in (TileOp.LOAD, TileOp.STORE):
            return self._access(node, args)
        return None

    def _access(self, node: Node, args: tuple[Node, ...]) -> Node:
        """A row of a tensor per token: no row where another step has it."""
        access = access_of(node)
        tensor, place, rank = self.tensor(access.tensor), self.places.get(access.tensor.name), access.tensor.rank
        if place is None:
            return accessed(node, args, tensor)
        assert access.other in (0.0, None), f"{tensor.name}: what is not there counts as 0"
        index = list(args[:rank])
        bounds: dict[int, tile.Value] = dict(zip(access.bounded, args[rank:], strict=False))
        step, token = (tile.apply(fn, index[1], self.writes.steps) for fn in (Fn.TRUNCMOD, Fn.TRUNCDIV))
        inside = tile.apply(Fn.LT, index[1], bounds[1]) if 1 in bounds else None
        if place == EVERY:
            index[2] = self._head(index[2], step, tensor, bounds)
        else:
            inside = both(tile.apply(Fn.EQ, step, place), inside)
        index[1] = token
        if inside is not None:
            bounds[1] = tile.param(self.writes.length)
            index[1] = tile.apply(Fn.WHERE, inside, token, bounds[1])
        if node.op is TileOp.LOAD:
            return tile.load(tensor, *index, bounds=bounds)
        tile.store(tensor, *index, value=args[-1], bounds=bounds, atomic=access.atomic)
        return stored()

    def _head(self, head: Node, step: Node, tensor: Tensor, bounds: dict[int, tile.Value]) -> Node:
        """A state's head among those of all steps; one past the last where it is past its own step's last."""
        every = int(str(tensor.shape[2]))
        own = add(mul(step, every // self.writes.steps), head)
        if 2 not in bounds:
            return own
        inside, bounds[2] = tile.apply(Fn.LT, head, bounds[2]), every
        return tile.apply(Fn.WHERE, inside, own, every)
