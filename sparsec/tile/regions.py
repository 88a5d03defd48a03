"""Where each node of a program runs: at the top, or in the body of the loop that it cannot leave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sparsec.tile.build import TileError, reachable
from sparsec.tile.language import LoopBody, Node, Program, TileOp

TOP = -1


@dataclass(frozen=True, slots=True)
class Regions:
    """The nodes of every region in the order in which they run.

    A value belongs to the innermost loop that it depends on, so what a loop does not change runs before it; an effect
    belongs to the loop that lists it.

    Attributes:
        nodes: the nodes of a loop's body by the loop's number, of the program's top by ``TOP``.
        home: the region of a node by its serial number.
        parent: the region in which a loop stands, by the loop's number.
    """

    nodes: dict[int, tuple[Node, ...]]
    home: dict[int, int]
    parent: dict[int, int]

    def enclosing(self, region: int) -> Iterator[int]:
        """A region and all regions around it, innermost first."""
        while region != TOP:
            yield region
            region = self.parent.get(region, TOP)
        yield TOP


def body_of(loop: Node) -> LoopBody:
    """The body of a LOOP node."""
    body = loop.attrs[0]
    assert isinstance(body, LoopBody)
    return body


def regions(program: Program) -> Regions:
    """The regions of a program's live nodes. Raises TileError where a value leaves its loop other than as a result."""
    live = reachable(program.effects)
    placed = _placed(program, live)
    home: dict[int, int] = {}
    for node in live:
        home[node.serial] = _home(node, home, placed)
    nodes: dict[int, list[Node]] = {TOP: []}
    for node in live:
        nodes.setdefault(home[node.serial], []).append(node)
    parent = {body_of(n).number: home[n.serial] for n in live if n.op is TileOp.LOOP}
    found = Regions({k: tuple(v) for k, v in nodes.items()}, home, parent)
    _check(live, placed, found)
    return found


def _placed(program: Program, live: list[Node]) -> dict[int, int]:
    """The region that lists an effect, by the effect's serial number."""
    placed = {e.serial: TOP for e in program.effects}
    for node in live:
        if node.op is TileOp.LOOP:
            placed.update({e.serial: body_of(node).number for e in body_of(node).effects})
    return placed


def _home(node: Node, home: dict[int, int], placed: dict[int, int]) -> int:
    if node.serial in placed:
        return placed[node.serial]
    if node.op in (TileOp.INDEX, TileOp.CARRY):
        return max(node.free)
    if node.op is not TileOp.LOOP:
        return max((home[a.serial] for a in node.args), default=TOP)
    # Not by what can be reached from the body: that includes the insides of loops that ended before this one.
    return max(node.free, default=TOP)


def _check(live: list[Node], placed: dict[int, int], found: Regions) -> None:
    for node in live:
        around = set(found.enclosing(found.home[node.serial]))
        for arg in node.args:
            if found.home[arg.serial] not in around:
                raise TileError(
                    f"{node!r} reads {arg!r} from inside loop {found.home[arg.serial]}; return it from the loop's body"
                )
