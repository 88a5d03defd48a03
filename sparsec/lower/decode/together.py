"""Programs of a step that have one grid and do not need each other become one: every launch costs microseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

from sparsec.lower.decode.chained import written
from sparsec.lower.decode.pages import ENDS, LENGTHS, TOKENS
from sparsec.lower.lowered import Step
from sparsec.lower.scalars import sub
from sparsec.scalar.expr import Expr
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor, TileOp, access_of
from sparsec.tile.regions import TOP, body_of, regions
from sparsec.tile.rewrite import Mapper, copies

Params = Mapping[str, Expr]
"""Launch parameters by name."""


def joined(first: Step, second: Step) -> Step:
    """The program that does the work of both, one after the other, in each grid point."""
    one, other = first.program, second.program
    with tile.Builder() as builder:
        both = [Mapper(program, lambda node, args: None) for program in (one, other)]
        if not any(node.op is TileOp.LOOP for p in (one, other) for node in tile.reachable(p.effects)):
            read_first(first, second, both)
        for mapper in both:
            mapper.region()
        tensors = dict.fromkeys([*one.tensors, *other.tensors])
        params = dict.fromkeys([*one.params, *other.params])
        found = builder.program(f"{one.name}_and_{other.name}", list(tensors), list(params), copies(one.grid))
    return replace(first, program=found)


HELD = 160
"""Elements at most that a thread holds before it stores any: registers hold 255 numbers."""


def read_first(first: Step, second: Step, mappers: Sequence[Mapper]) -> None:
    """Put the loads of two programs before all that their launch stores: no compiler would, as it does not know them
    apart."""
    stored = written(first.program) | written(second.program)
    threads, held = 32 * first.schedule.warps, 0
    for step, mapper in zip((first, second), mappers, strict=True):
        for node in regions(step.program).nodes[TOP]:
            if node.op is not TileOp.LOAD or access_of(node).tensor.name in stored:
                continue
            size = prod(axis.size for axis in node.axes) // threads
            if held + size <= HELD:
                held += size
                mapper(node)


def counted(step: Step) -> Step | None:
    """The last program of a step, which makes the sequences as long as they are now.

    It takes lengths from the new ones, since another grid point may have stored them. None where its grid is another.
    """
    program, lengths, ends = step.program, *(Tensor(name, "int32", ("B",)) for name in (LENGTHS, ENDS))
    batches = len(program.grid) == 3 and program.grid[2].op is TileOp.PARAM and program.grid[2].attrs[0] == "B"
    if not batches or lengths.name in written(program):
        return None

    def rule(node: Node, args: tuple[Node, ...]) -> Node | None:
        if node.op is not TileOp.LOAD or access_of(node).tensor != lengths:
            return None
        return sub(tile.load(ends, *args), tile.param(TOKENS, declare=True))

    with tile.Builder() as builder:
        Mapper(program, rule).region()
        batch = tile.program_id(2)
        tile.store(lengths, batch, value=tile.load(ends, batch))
        tensors = dict.fromkeys([*program.tensors, ends, lengths])
        found = builder.program(program.name, list(tensors), program.params, copies(program.grid))
    return replace(step, program=found)


def fit(first: Step, second: Step, early: bool = False) -> bool:
    """Whether two programs may run as one: same grid and resources, and neither touches what the other writes.

    Where launches start ``early``, loops that say so themselves may have other stages: what needs no wait is then best
    in the launch that waits last.
    """
    one, other = first.program, second.program
    shared = {t.name: t for t in one.tensors}
    alike = all(shared.get(t.name, t) == t for t in other.tensors)
    return alike and resources(first, early) == resources(second, early) and one_grid(one, other) and apart(one, other)


def apart(one: Program, other: Program) -> bool:
    """Whether the order of two programs does not matter."""
    touched = [{t.name for t in p.tensors} for p in (one, other)]
    return not (written(one) & touched[1] or written(other) & touched[0])


def agree(first: Params, second: Params) -> bool:
    """Whether launch parameters that both have mean the same."""
    return all(second[name] is value for name, value in first.items() if name in second)


def resources(step: Step, early: bool = False) -> tuple[object, ...]:
    """What of a schedule one launch has but once; stages are none of it where all loops say their own."""
    s = step.schedule
    loops = [body_of(node).stages for node in tile.reachable(step.program.effects) if node.op is TileOp.LOOP]
    own = early and loops and None not in loops
    return s.warps, None if own else s.stages, s.registers, s.descriptors, s.split_dims, s.lanes


def one_grid(one: Program, other: Program) -> bool:
    """Whether two programs have the same grid."""
    return len(one.grid) == len(other.grid) and all(_same(a, b) for a, b in zip(one.grid, other.grid, strict=True))


def _same(a: Node, b: Node) -> bool:
    """Whether two scalars of launch parameters are one expression."""
    if (a.op, a.attrs, len(a.args)) != (b.op, b.attrs, len(b.args)):
        return False
    return all(_same(x, y) for x, y in zip(a.args, b.args, strict=True))
