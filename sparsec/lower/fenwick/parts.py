"""What one program of a delta rule's gradients leaves to the next, in the dtype of the keys: a chunk's matrices."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.fenwick.back import Back
from sparsec.lower.fenwick.frame import Frame
from sparsec.lower.fenwick.rungs import edges
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Tensor


@dataclass(frozen=True, slots=True)
class Parts:
    """Gradients in fp32: of F ``[c,n]`` and T ``[t,n]``; of K" ``[n,d]``, and of e^{Γ_C}."""

    effective: Node
    solved: Node
    ending: Node | None = None
    whole: Node | None = None


def store(f: Frame, found: Parts) -> None:
    """Leave them; that of X_0 is known before."""
    b, a = f.b, f.axes
    _keep(f, b.of_effective, a.queries, tile.iota(a.keys), found.effective)
    _keep(f, b.of_solved, f.at.middle, tile.iota(a.keys), found.solved)
    if found.ending is not None:
        _keep(f, b.of_ending, a.keys, tile.iota(a.dims), found.ending)
    if found.whole is not None:
        tile.store(b.of_whole, f.chunk.batch, f.chunk.head, f.chunk.number, value=found.whole)
        f.tensors.append(b.of_whole)


def lifted(f: Frame, column: Node, value: Node) -> None:
    """Leave some columns of the gradient of K'."""
    _keep(f, f.b.of_lifted, f.axes.keys, column, value)


def leave(f: Frame, among: Node, solved: Node, ending: Node) -> None:
    """Leave the sums over value columns, which parts are made of."""
    a, tensors = f.axes, f.b.sums
    _keep(f, tensors[0], a.queries, tile.iota(a.keys), among)
    _keep(f, tensors[1], f.at.middle, tile.iota(a.keys), solved)
    _keep(f, tensors[2], a.keys, tile.iota(a.dims), ending)


def left(f: Frame) -> tuple[Node, Node, Node]:
    """Read them again."""
    a, tensors = f.axes, f.b.sums
    among = _kept(f, tensors[0], a.queries, tile.iota(a.keys))
    solved = _kept(f, tensors[1], f.at.middle, tile.iota(a.keys))
    return among, solved, _kept(f, tensors[2], a.keys, tile.iota(a.dims))


def load(f: Frame) -> Parts:
    """Read them again, but for those that are read some columns at a time."""
    b, a = f.b, f.axes
    effective = _kept(f, b.of_effective, a.queries, tile.iota(a.keys))
    solved = _kept(f, b.of_solved, f.at.middle, tile.iota(a.keys))
    if not b.rungs.outer:
        return Parts(effective, solved)
    return Parts(effective, solved, whole=tile.load(b.of_whole, f.chunk.batch, f.chunk.head, f.chunk.number))


def columns(f: Frame, column: Node) -> tuple[Node, Node, Node]:
    """Some columns of the gradients of X_0 ``[c,e]``, K' and K" ``[n,e]``."""
    b, a = f.b, f.axes
    lifted, ending = (_kept(f, tensor, a.keys, column) for tensor in (b.of_lifted, b.of_ending))
    return _kept(f, b.pull, a.queries, column), lifted, ending


def tensors(b: Back) -> list[Tensor]:
    """Where they lie."""
    found = [b.of_effective, b.of_solved]
    return found + [b.of_lifted, b.of_ending, b.of_whole, b.pull] * bool(b.rungs.outer)


def _keep(f: Frame, tensor: Tensor, tokens: Axis, column: Node, value: Node) -> None:
    place = (f.chunk.batch, f.chunk.head, f.chunk.token(tokens), column)
    tile.store(tensor, *place, value=tile.cast(value, tensor.dtype), bounds=edges(tensor, [column]))
    f.tensors.append(tensor)


def _kept(f: Frame, tensor: Tensor, tokens: Axis, column: Node) -> Node:
    place = (f.chunk.batch, f.chunk.head, f.chunk.token(tokens), column)
    return tile.cast(tile.load(tensor, *place, bounds=edges(tensor, [column])), "float32")
