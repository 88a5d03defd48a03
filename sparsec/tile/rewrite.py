"""A program as another one, node by node from the bottom up: how lengths come from a table, or keys from pages.

A rule sees a node with its sources already rewritten and gives what takes its place, or None to keep the node on its
new sources. Rules build nodes with ``sparsec.tile.build``; the rewritten program has nodes of a builder of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Access, Node, Program, Tensor, TileOp, access_of
from sparsec.tile.regions import TOP, body_of, regions

Rule = Callable[[Node, tuple[Node, ...]], Node | None]
"""From a node of the old program and its rewritten sources to its replacement; None keeps it.

A rule that replaces a STORE writes it with ``tile.store`` and returns the ``stored()`` node. It never sees a loop, a
loop's variable, a carried value or a result.
"""


class Mapper:
    """Rewrites a program's nodes into the current builder, each once and in the old order.

    Attributes:
        apart: the loops of the old program inside which every value is rewritten anew, because a rule gives another
            replacement there (a length that depends on the loop's variable).
        open: the loops of the old program that are being rewritten.
    """

    def __init__(self, program: Program, rule: Rule, apart: frozenset[int] = frozenset()) -> None:
        self.rule, self.apart, self.open = rule, apart, frozenset[int]()
        self._regions, self._made = regions(program), dict[int, Node]()

    def __call__(self, node: Node) -> Node:
        """The node in the new program."""
        waiting = [node]
        while waiting:
            last = waiting[-1]
            missing = [a for a in last.args if a.serial not in self._made] if last.serial not in self._made else []
            if missing:
                waiting += missing
                continue
            waiting.pop()
            if last.serial not in self._made:
                self._made[last.serial] = self._rewritten(last, tuple(self._made[a.serial] for a in last.args))
        return self._made[node.serial]

    def region(self, number: int = TOP) -> None:
        """Rewrite what runs in a region; its effects become those of the innermost open one."""
        for node in self._regions.nodes.get(number, ()):
            self(node)

    def _rewritten(self, node: Node, args: tuple[Node, ...]) -> Node:
        if node.op is TileOp.LOOP:
            return self._loop(node, args)
        if node.op is TileOp.RESULT:
            return rebuilt(node, args)
        found = self.rule(node, args)
        return rebuilt(node, args) if found is None else found

    def _loop(self, node: Node, args: tuple[Node, ...]) -> Node:
        body, kept, around = body_of(node), self._made, self.open

        def visit(index: Node, *carries: Node) -> Sequence[Node]:
            self.open = around | {body.number}
            self._made = _outer(kept) if body.number in self.apart else dict(kept)
            self._made[body.index.serial] = index
            self._made.update({old.serial: new for old, new in zip(body.carries, carries, strict=True)})
            self.region(body.number)
            return [self(y) for y in body.yields]

        lo, hi, *inits = args
        results = tile.loop(lo, hi, body.step, inits, visit, body.stages)
        made = results[0].args[0] if results else stored()
        inside, self._made, self.open = self._made, kept, around
        if body.number not in self.apart:
            self._made.update({serial: n for serial, n in inside.items() if body_of(made).number not in n.free})
        return made


def _outer(kept: dict[int, Node]) -> dict[int, Node]:
    """What a loop whose values are rewritten anew still takes from around it: loops, their variables and results."""
    fixed = (TileOp.LOOP, TileOp.RESULT, TileOp.INDEX, TileOp.CARRY)
    return {serial: made for serial, made in kept.items() if made.op in fixed}


def rebuilt(node: Node, args: Sequence[Node]) -> Node:
    """The node's op and attributes on other sources."""
    if node.op is TileOp.MAP:
        assert isinstance(node.attrs[0], Fn)
        return tile.apply(node.attrs[0], *args)
    if node.op in (TileOp.LOAD, TileOp.STORE):
        return accessed(node, args)
    axes = tile.union(*args) if node.op is TileOp.MASK_IF else node.axes
    free = None if args else frozenset[int]()
    return tile.Builder.current().node(node.op, args, node.attrs, node.dtype, axes, free)


def accessed(node: Node, args: Sequence[Node], tensor: Tensor | None = None) -> Node:
    """A load or store on other sources, and on another tensor where one is given."""
    access = access_of(node)
    access = access if tensor is None else replace(access, tensor=tensor)
    rank, limits = access.tensor.rank, len(access.bounded)
    index, bounds = args[:rank], dict(zip(access.bounded, args[rank : rank + limits], strict=True))
    if node.op is TileOp.LOAD:
        return tile.load(access.tensor, *index, bounds=dict(bounds), other=access.other, evict=access.evict)
    tile.store(access.tensor, *index, value=args[-1], bounds=dict(bounds), atomic=access.atomic, evict=access.evict)
    return stored()


def stored() -> Node:
    """The effect that was added last."""
    return tile.Builder.current().last_effect()


def rewrite(
    program: Program,
    rule: Rule,
    tensors: Sequence[Tensor],
    params: Sequence[tuple[str, str]] | None = None,
    grid: Rule | None = None,
) -> Program:
    """The program under a rule, with these tensors in launch order; ``grid`` is the rule of its grid, if that changes.

    Args:
        params: the launch parameters; None leaves them as they are.
    """
    with tile.Builder() as builder:
        Mapper(program, rule).region()
        return builder.program(program.name, tensors, params or program.params, copies(program.grid, grid))


def copies(nodes: Sequence[Node], rule: Rule | None = None) -> list[Node]:
    """Scalar nodes of launch parameters in the current builder, under a rule."""
    made = []
    for node in nodes:
        args = tuple(copies(node.args, rule))
        found = None if rule is None else rule(node, args)
        made.append(rebuilt(node, args) if found is None else found)
    return made


def accesses(program: Program) -> list[tuple[Node, Access]]:
    """Every load and store of a program."""
    live = tile.reachable(program.effects)
    return [(n, access_of(n)) for n in live if n.op in (TileOp.LOAD, TileOp.STORE)]
