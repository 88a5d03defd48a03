"""Groups: stages that one loop nest computes together, each element passing from one to the next in a register.

A stage joins the earliest group over the same space whose members it reads only point by point; what it reads of a
reduction, or at other points, puts it into a later group. Online softmax becomes {dot, mask, max}, {exp2, sum}, {dot}.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sparsec.backends.tvm.demands import Stage
from sparsec.backends.tvm.stages import Decisions
from sparsec.tile.language import Axis, Node, TileOp
from sparsec.tile.regions import body_of

ALONE = frozenset({"scan", "top_insert", "loop", "turn"})
"""Stages with a loop nest to themselves."""


@dataclass(slots=True)
class Group:
    """Stages of one loop nest, in order; ``base`` is the first one's kind if it shapes the nest."""

    base: str | None
    space: tuple[Axis, ...]
    lane: Axis | None
    members: list[Stage] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Read:
    """A stored value that a stage reads; ``pointwise`` if only at the point that is being computed."""

    node: Node
    pointwise: bool


def reads(stage: Stage, found: Decisions) -> list[Read]:
    """The stages, carries and loop results that a stage reads, directly or through values computed in place."""
    node = stage.node
    if node.op is TileOp.LOOP:
        return [Read(n, False) for n in _outside(node, found)]
    pending = [(a, _is_pointwise(node, k)) for k, a in enumerate(node.args)]
    seen: dict[tuple[int, bool], Read] = {}
    while pending:
        child, pointwise = pending.pop()
        if (child.serial, pointwise) in seen:
            continue
        seen[child.serial, pointwise] = Read(child, pointwise)
        if not is_stored(child, found):
            pending += [(a, pointwise and _is_pointwise(child, k)) for k, a in enumerate(child.args)]
    return [read for read in seen.values() if is_stored(read.node, found)]


def is_stored(node: Node, found: Decisions) -> bool:
    """Whether a value has a place (or a name) of its own."""
    return node.serial in found.stages or node.op in (TileOp.CARRY, TileOp.RESULT)


def _is_pointwise(node: Node, position: int) -> bool:
    """Whether ``node`` reads this operand at the same point."""
    if node.op is TileOp.DOT:
        return position == 2
    if node.op in (TileOp.LOAD, TileOp.STORE):
        return node.op is TileOp.STORE and position == len(node.args) - 1
    if node.op is TileOp.TOP_INSERT:
        return position == 0
    return node.op not in (TileOp.RENAME, TileOp.SCAN)


def _outside(loop: Node, found: Decisions) -> list[Node]:
    """The stored values from outside that a loop reads."""
    body = body_of(loop)
    pending: list[Node] = [*loop.args, *body.yields, *body.effects]
    seen: dict[int, Node] = {}
    stored: list[Node] = []
    while pending:
        node = pending.pop()
        if node.serial in seen:
            continue
        seen[node.serial] = node
        inside = body.number in found.regions.enclosing(found.regions.home[node.serial])
        if not inside and is_stored(node, found):
            stored.append(node)
        elif node.op is TileOp.LOOP:
            pending += [*node.args, *body_of(node).yields, *body_of(node).effects]
        else:
            pending += node.args
    return stored


def arrange(stages: Sequence[Stage], found: Decisions) -> list[Group]:
    """The groups of a region's stages, which come in order of creation."""
    groups: list[Group] = []
    place: dict[int, int] = {}
    for stage in stages:
        first = 0
        for read in reads(stage, found):
            producer = read.node.args[0] if read.node.op is TileOp.RESULT else read.node
            if producer.serial in place:
                at = place[producer.serial]
                first = max(
                    first, at if read.pointwise and _meets(found.stages[producer.serial], groups[at], stage) else at + 1
                )
        base = base_of(stage)
        at = _join(stage, groups, first) if base is None else len(groups)
        if at == len(groups):
            groups.append(Group(base, stage.space, stage.lane))
        groups[at].members.append(stage)
        place[stage.node.serial] = at
    return groups


def base_of(stage: Stage) -> str | None:
    """What kind of nest a stage needs; None if any will do."""
    name = "turn" if stage.turn else stage.node.op.name.lower()
    return name if name in ALONE or name == "dot" else None


def _meets(producer: Stage, group: Group, reader: Stage) -> bool:
    """Whether the reader can take the producer's element from the nest that makes it."""
    whole = producer.node.axes == producer.space == reader.space and producer.node.op is not TileOp.REDUCE
    return whole and producer.lane == reader.lane and group.base not in ALONE and reader.node.op is not TileOp.DOT


def _join(stage: Stage, groups: Sequence[Group], first: int) -> int:
    for at in range(first, len(groups)):
        group = groups[at]
        if (group.space, group.lane) == (stage.space, stage.lane) and group.base not in ALONE:
            return at
    return len(groups)
