"""Chunks of several parts of a bank one after another: where a part's tokens begin and end, a state begins and ends.

Everything here leaves a state as it is where a scan has one part. Where states fade as a whole and begin with zeros,
sums of decays do what is to be done, without a select in walks that have no register left for it.
"""

from __future__ import annotations

from collections.abc import Callable

from sparsec.lower.scan.chunk.parts import Chunk, Chunked, segment_bounds
from sparsec.lower.scan.runs import CUT
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor

GONE = -10000.0
"""A base-2 log-decay that leaves nothing."""

Limits = dict[int, tile.Value]
Place = tuple[Node, Node]
"""Indices of a state's rows and columns."""


def _field(own: Chunked, batch: Node, head: Node, number: Node, field: int) -> Node:
    assert own.runs is not None
    return tile.load(own.runs.stretches, batch, own.runs.listed(head), number, field, bounds={2: tile.param(CUT)})


def _part(chunk: Chunk, end: int) -> tuple[Node, Node]:
    """Whether the chunk is the first (1) or last (2) of its part, and the part, or none where it is not."""
    own = chunk.own
    assert own.runs is not None
    here = tile.apply(Fn.LT, 0, _field(own, chunk.batch, chunk.head, chunk.number, end))
    part = _field(own, chunk.batch, chunk.head, chunk.number, 0)
    return here, tile.apply(Fn.WHERE, here, part, own.runs.route.parts)


def where_held(chunk: Chunk, turns: int) -> tile.Value:
    """So many turns; none for a chunk after the last that holds tokens."""
    own = chunk.own
    if own.runs is None:
        return turns
    there = tile.apply(Fn.LT, chunk.number, own.runs.held(chunk.batch, chunk.head))
    return tile.apply(Fn.WHERE, there, turns, 0)


def states(own: Chunked, name: str) -> Tensor:
    """States of all parts as they come and go."""
    w = own.writes
    return Tensor(name, "float32", ("B", own.parts, w.heads, w.rows, w.cols))


def tensors(own: Chunked, *names: str | None) -> list[Tensor]:
    """What begins and ends read and write: states by name, and which chunks they are at."""
    if own.runs is None:
        return []
    return [own.runs.stretches, own.runs.spans, *(_tensor(own, name) for name in names if name is not None)]


def _tensor(own: Chunked, name: str) -> Tensor:
    """States by name; first ones that all batch entries share have no batch."""
    found, w = states(own, name), own.writes
    return found if name != w.initial or w.initial_batched else Tensor(name, found.dtype, found.shape[1:])


def entered(chunk: Chunk, state: Node, place: Place, limits: Limits) -> Node:
    """The state before a chunk: anew where a part begins."""
    own, w = chunk.own, chunk.own.writes
    if own.runs is None or own.fades_out:
        return state
    here, part = _part(chunk, 1)
    return tile.apply(Fn.WHERE, here, _given(chunk, w.initial, part, place, limits), state)


def ended(chunk: Chunk, name: str | None, grad: Node, place: Place, limits: Limits) -> Node:
    """The gradient of the state after a chunk: that of a part's last states, if any, where the part ends."""
    if chunk.own.runs is None or (chunk.own.fades_out and name is None):
        return grad
    here, part = _part(chunk, 2)
    return tile.apply(Fn.WHERE, here, _given(chunk, name, part, place, limits), grad)


def _given(chunk: Chunk, name: str | None, part: Node, place: Place, limits: Limits) -> Node:
    if name is None:
        return tile.full(0.0, place[0].axes[0], place[1].axes[0])
    tensor, bounds = _tensor(chunk.own, name), {1: chunk.own.parts, **limits}
    if tensor.rank == 5:
        return tile.load(tensor, chunk.batch, part, chunk.head, *place, bounds=bounds)
    return tile.load(tensor, part, chunk.head, *place, bounds={dim - 1: limit for dim, limit in bounds.items()})


def keep_last(chunk: Chunk, name: str | None, state: Node, place: Place, limits: Limits) -> None:
    """Store the state after a chunk where a part ends."""
    _keep(chunk, name, 2, state, place, limits)


def keep_first(chunk: Chunk, name: str | None, grad: Node, place: Place, limits: Limits) -> None:
    """Store the gradient of the state before a chunk where a part begins."""
    _keep(chunk, name, 1, grad, place, limits)


def _keep(chunk: Chunk, name: str | None, end: int, value: Node, place: Place, limits: Limits) -> None:
    if chunk.own.runs is None or name is None:
        return
    _, part = _part(chunk, end)
    bounds: Limits = {1: chunk.own.parts, **limits}
    tile.store(states(chunk.own, name), chunk.batch, part, chunk.head, *place, value=value, bounds=bounds)


def passed(chunk: Chunk, total: Node, decay: Callable[[], Node] | None) -> Node:
    """The decay of what passes a segment up to the end of a chunk: nothing passes where a part begins."""
    if chunk.own.runs is not None and not chunk.own.fades_out:
        here, _ = _part(chunk, 1)
        total = tile.apply(Fn.WHERE, here, GONE, total)
    return total if decay is None else tile.apply(Fn.ADD, total, decay())


def handed_on(own: Chunked, at: tuple[Node, Node, Node], grad: Node) -> Node:
    """The gradient that a segment hands to the one before it: none where it begins with a part."""
    if own.runs is None:
        return grad
    batch, head, segment = at
    start, _ = segment_bounds(own, segment, batch, head)
    first = _field(own, batch, head, start, 1)
    return tile.apply(Fn.WHERE, tile.apply(Fn.LT, 0, first), 0.0, grad)
