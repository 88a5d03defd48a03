"""What the printed code of each node reads, which nodes are printed at all, and which are written in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sparsec.backends.triton.address import split
from sparsec.tile.language import Node, Program, TileOp, access_of
from sparsec.tile.regions import Regions, body_of, regions

LEAVES = (TileOp.CONST, TileOp.PARAM, TileOp.PROGRAM_ID, TileOp.IOTA, TileOp.INDEX, TileOp.CARRY, TileOp.RESULT)
"""Ops that are always names or numbers."""

_SHORT = (TileOp.MAP, TileOp.CAST, TileOp.RENAME, TileOp.REDUCE)


def operands(node: Node, boxes: frozenset[int] = frozenset()) -> tuple[Node, ...]:
    """The nodes whose text appears in the text of ``node``; ``boxes`` are the loads that go through descriptors."""
    if node.op is TileOp.LOOP:
        body = body_of(node)
        return (*node.args, *body.yields, *body.effects)
    if node.op not in (TileOp.LOAD, TileOp.STORE):
        return node.args
    access = access_of(node)
    rank = access.tensor.rank
    terms = [t for i in node.args[:rank] for t in (*split(i).scalars, *split(i).tiles)]
    parts = [t.node for t in terms if t.node is not None]
    if node.serial in boxes:
        return tuple(parts)
    return (*parts, *(node.args[d] for d in access.bounded), *node.args[rank:])


Reads = Callable[[Node], tuple[Node, ...]]
"""The nodes whose text appears in that of another."""


@dataclass(frozen=True, slots=True)
class Uses:
    """The nodes that are printed.

    Attributes:
        order: the printed nodes of each region.
        readers: who reads a node's text, with repetition, by serial number.
    """

    regions: Regions
    order: dict[int, tuple[Node, ...]]
    readers: dict[int, list[Node]]

    def inline(self, node: Node) -> bool:
        """Whether a node is written inside its only reader, in the same region."""
        readers = self.readers.get(node.serial, [])
        if node.op not in _SHORT or len(readers) != 1 or readers[0].op is TileOp.LOOP:
            return False
        return self.regions.home[readers[0].serial] == self.regions.home[node.serial]


def uses(program: Program, boxes: frozenset[int] = frozenset(), reads: Reads | None = None) -> Uses:
    """Who reads what in the printed text of a program; ``reads`` says so where not everything is printed."""
    readers: dict[int, list[Node]] = {}
    seen: dict[int, Node] = {}
    stack = list(program.effects)
    while stack:
        node = stack.pop()
        if node.serial in seen:
            continue
        seen[node.serial] = node
        for operand in reads(node) if reads else operands(node, boxes):
            readers.setdefault(operand.serial, []).append(node)
            stack.append(operand)
    found = regions(program)
    order = {region: tuple(n for n in nodes if n.serial in seen) for region, nodes in found.nodes.items()}
    return Uses(found, order, readers)
