"""Indices as a scalar part and a tile part: scalars move the 64-bit base, tiles stay narrow 32-bit offsets."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.scalar.fn import Fn
from sparsec.tile.language import Node, Program, TileOp, access_of
from sparsec.tile.regions import regions


@dataclass(frozen=True, slots=True)
class Term:
    """``factor * node``, one summand of an index; without a node, ``factor`` itself."""

    factor: int
    node: Node | None = None

    @property
    def is_tile(self) -> bool:
        """Whether the summand has axes."""
        return self.node is not None and bool(self.node.axes)


@dataclass(frozen=True, slots=True)
class Index:
    """The summands of one dimension's index."""

    scalars: tuple[Term, ...]
    tiles: tuple[Term, ...]


def split(index: Node) -> Index:
    """The scalar and the tile summands of an index."""
    terms = _terms(index, 1)
    return Index(tuple(t for t in terms if not t.is_tile), tuple(t for t in terms if t.is_tile))


def _terms(node: Node, factor: int) -> list[Term]:
    if node.op is TileOp.CONST:
        value = node.attrs[0]
        assert isinstance(value, int)
        return [Term(factor * value)] if value else []
    if not node.axes or node.op is not TileOp.MAP:
        return [Term(factor, node)]
    a, b = (*node.args, node.args[0])[:2]
    if node.attrs[0] is Fn.ADD:
        return _terms(a, factor) + _terms(b, factor)
    if node.attrs[0] is Fn.SUB:
        return _terms(a, factor) + _terms(b, -factor)
    if node.attrs[0] is Fn.MUL and b.op is TileOp.CONST and isinstance(b.attrs[0], int):
        return _terms(a, factor * b.attrs[0])
    return [Term(factor, node)]


def largest(node: Node) -> int | None:
    """The largest value of a tile made of iotas and constants alone; None where it depends on more than that."""
    if node.op is TileOp.IOTA:
        return node.axes[0].size - 1
    if node.op is TileOp.CONST:
        return abs(value) if isinstance(value := node.attrs[0], int) else None
    if node.op is TileOp.RENAME:
        return largest(node.args[0])
    if node.op is not TileOp.MAP:
        return None
    bounds = [largest(a) for a in node.args]
    if any(b is None for b in bounds):
        return None
    return _largest_of(node.attrs[0], [b for b in bounds if b is not None])


def _largest_of(fn: object, bounds: list[int]) -> int | None:
    if fn in (Fn.TRUNCDIV, Fn.TRUNCMOD, Fn.WHERE, Fn.MINIMUM, Fn.MAXIMUM):
        return max(bounds[:1] if fn is Fn.TRUNCDIV else bounds)
    if fn in (Fn.ADD, Fn.SUB):
        return sum(bounds)
    return bounds[0] * bounds[1] if fn is Fn.MUL else None


def narrow(index: Index) -> bool:
    """Whether every tile summand is known to be small, so that its offset may be computed in 32 bits."""
    return all(t.node is not None and largest(t.node) is not None for t in index.tiles)


def stride_limits(program: Program) -> dict[str, int]:
    """The largest value that each stride may take so that offsets inside a tile fit 31 bits, by argument name."""
    extents: dict[str, int] = {}
    for node in (n for nodes in regions(program).nodes.values() for n in nodes):
        if node.op not in (TileOp.LOAD, TileOp.STORE):
            continue
        tensor = access_of(node).tensor
        for dim, arg in enumerate(node.args[: tensor.rank - 1]):
            index = split(arg)
            if index.tiles and narrow(index):
                reach = sum(abs(t.factor) * (largest(t.node) or 0) for t in index.tiles if t.node is not None)
                name = f"{tensor.name}_s{dim}"
                extents[name] = max(extents.get(name, 1), reach)
    return {name: (2**31 - 1) // (2 * extent) for name, extent in extents.items()}
