"""How a launch may overlap with the one before, and what of its program runs before it waits for that one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sparsec.tile.language import Node, TileOp, access_of
from sparsec.tile.regions import TOP, Regions, body_of


@dataclass(frozen=True, slots=True)
class Chain:
    """A launch that starts while the one before ends, and waits for its end (Triton on Hopper and later).

    Attributes:
        ready: tensors that no launch writes that may still run when this one starts; they are read before the wait.
        head: whether it waits before it reads anything, and others follow only then: all that came before the chain
            has ended.
        late: whether others follow only once it has waited: what came before it has ended when they start.
        free: tensors that no launch touches that may still run, and that this one only writes: they are written before
            the wait, and loops that need nothing else run before it. None where all loops and stores wait.
    """

    ready: frozenset[str] = frozenset()
    head: bool = False
    late: bool = False
    free: frozenset[str] | None = None

    @property
    def opens(self) -> bool:
        """Whether the next launch starts once this one has waited, not as soon as this one has started."""
        return self.head or self.late


def early(regions: Regions, chain: Chain) -> frozenset[int]:
    """The serial numbers of nodes that run before the wait: those that need no launch that may still run."""
    found = set[int]()
    for node in regions.nodes[TOP]:
        own = [node, *_inside(regions, node)]
        needed = {a.serial for n in own for a in n.args if regions.home.get(a.serial, TOP) == TOP} - {node.serial}
        if not any(_waits(n, chain) for n in own) and needed <= found:
            found |= {n.serial for n in own}
    return frozenset(found)


def _inside(regions: Regions, node: Node) -> Iterator[Node]:
    """What runs in a loop and in the loops in it; nothing for another node."""
    if node.op is TileOp.LOOP:
        for inner in regions.nodes.get(body_of(node).number, ()):
            yield inner
            yield from _inside(regions, inner)


def _waits(node: Node, chain: Chain) -> bool:
    if node.op is TileOp.LOAD:
        return access_of(node).tensor.name not in chain.ready
    if node.op is TileOp.STORE:
        access = access_of(node)
        return chain.free is None or access.atomic or access.tensor.name not in chain.free
    return node.op in (TileOp.LOOP, TileOp.RESULT) and chain.free is None
