"""Tile programs with one mistake in them: what a check that admits kernels must refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sparsec.lower.lowered import Lowered
from sparsec.tile import build as tile
from sparsec.tile.build import reachable
from sparsec.tile.language import LoopBody, Node, Program, TileOp, access_of

Args = tuple[Node, ...]
Change = Callable[[Node, Args], Node | Args | None]
"""A node and its sources in the new program -> what takes its place there, or other sources for it, or None."""


def mutated(lowered: Lowered, change: Change, only: str | None = None) -> Lowered:
    """All programs of a kernel after a change; with ``only``, just as far as stores to that buffer see it."""
    steps = tuple(replace(step, program=changed(step.program, change, only)) for step in lowered.steps)
    return replace(lowered, steps=steps)


def changed(program: Program, change: Change, only: str | None = None) -> Program:
    """A program rebuilt node by node; loops are rebuilt with what is inside them."""
    with tile.Builder() as builder:
        plain = _rebuilt(builder, program, lambda node, args: None) if only else {}
        new = _rebuilt(builder, program, change)
        effects = [_pick(e, plain, new, only) for e in program.effects]
        grid = [new[g.serial] for g in program.grid]
        return replace(program, grid=tuple(grid), effects=tuple(effects))


def _pick(effect: Node, plain: dict[int, Node], new: dict[int, Node], only: str | None) -> Node:
    aside = only and not (effect.op is TileOp.STORE and access_of(effect).tensor.name == only)
    return (plain if aside else new)[effect.serial]


def _rebuilt(builder: tile.Builder, program: Program, change: Change) -> dict[int, Node]:
    """The new node of every old one, by its serial number."""
    new: dict[int, Node] = {}
    numbers: dict[int, int] = {}
    for node in reachable((*program.effects, *program.grid)):
        args = tuple(new[a.serial] for a in node.args)
        found = change(node, args)
        args = found if isinstance(found, tuple) else args
        if isinstance(found, Node):
            new[node.serial] = found
        elif node.op is TileOp.LOOP:
            new[node.serial] = _loop(builder, node, args, new)
        elif node.op in (TileOp.INDEX, TileOp.CARRY):
            new[node.serial] = _loop_variable(builder, node, numbers)
        else:
            new[node.serial] = builder.node(node.op, args, node.attrs, node.dtype, node.axes)
    return new


def _loop_variable(builder: tile.Builder, node: Node, numbers: dict[int, int]) -> Node:
    old = node.attrs[0]
    assert isinstance(old, int)
    if old not in numbers:
        numbers[old], builder._loops = builder._loops, builder._loops + 1
    free = frozenset(numbers.get(loop, loop) for loop in node.free)
    return builder.node(node.op, (), (numbers[old], *node.attrs[1:]), node.dtype, node.axes, free)


def _loop(builder: tile.Builder, node: Node, args: Args, new: dict[int, Node]) -> Node:
    """A loop around its new body."""
    body = node.attrs[0]
    assert isinstance(body, LoopBody)
    index = new[body.index.serial]
    number = index.attrs[0]
    assert isinstance(number, int)
    carries, yields, effects = (tuple(new[n.serial] for n in p) for p in (body.carries, body.yields, body.effects))
    rebuilt = LoopBody(number, body.step, index, carries, yields, effects, body.stages)
    free = frozenset[int]().union(*(x.free for x in (*args, *yields, *effects))) - {number}
    return builder.node(TileOp.LOOP, args, (rebuilt,), node.dtype, node.axes, free)
