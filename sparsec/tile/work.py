"""How much a tile program does: products, elementwise operations and bytes moved, counted without running it.

Loop bounds of every grid point follow from launch parameters; only what a program reads from memory to decide how long
to go on (the length of a list) has to be guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

from sparsec.scalar.fn import Fn
from sparsec.tile.language import Access, Axis, Node, Program, TileOp
from sparsec.tile.regions import TOP, Regions, body_of, regions
from sparsec.tile.scalars import grid_of

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "int64": 8, "bool": 1}
PASSES = {"tf32": 2, "tf32x3": 6, "ieee": 12}
"""How many times longer than half precision fp32 operands take on tensor cores, or beside them for ieee."""

POINTS = 48
"""Grid points that stand for all of them, evenly spread over the first grid dimension."""

Guess = Callable[[Node], float]
"""The value of a scalar that is loaded, or carried by a loop."""


@dataclass(frozen=True, slots=True)
class Work:
    """Counts over a whole grid.

    Attributes:
        dots: floating-point operations of dots, two per product.
        passes: the same in units of a half-precision tensor core: tf32 takes 2, tf32x3 6, fp32 (ieee) 12 times as long.
        elements: elements computed by maps, reductions, scans, casts and masks.
        powers: those of them that are exponentials, logarithms or roots.
        ranked: candidates offered to a running top-k.
        loaded, stored: bytes that tiles load and store, from caches or memory.
        programs: grid points.
        steps: iterations of loops.
    """

    dots: float = 0.0
    passes: float = 0.0
    elements: float = 0.0
    powers: float = 0.0
    ranked: float = 0.0
    loaded: float = 0.0
    stored: float = 0.0
    programs: float = 0.0
    steps: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: float) -> Work:
        return Work(*(getattr(self, f.name) * times for f in fields(self)))


def work(program: Program, params: Mapping[str, int], guess: Guess = lambda node: 0.0) -> Work:
    """The work of a program over its grid under launch parameters; ``guess`` stands for scalars read from memory."""
    grid = grid_of(program, params)
    total = math.prod(grid)
    if total == 0:
        return Work()
    found, placed = Work(), regions(program)
    points = sorted({min(int((n + 0.5) * grid[0] / POINTS), grid[0] - 1) for n in range(POINTS)})
    for n, first in enumerate(points):
        rest = [(n * 7) % extent for extent in grid[1:]]
        found = found + _Counter(placed, params, (first, *rest), guess).region(TOP)
    return replace(found * (total / len(points)), programs=float(total))


class _Counter:
    """One grid point: scalars as far as they are known, and the work of each region."""

    def __init__(self, placed: Regions, params: Mapping[str, int], point: tuple[int, ...], guess: Guess) -> None:
        self.placed, self.params, self.point, self.guess = placed, params, point, guess
        self.known: dict[int, float] = {}

    def region(self, number: int) -> Work:
        """One pass through a region."""
        found = Work()
        for node in self.placed.nodes.get(number, ()):
            found = found + (self._loop(node) if node.op is TileOp.LOOP else _of_node(node))
        return found

    def _loop(self, node: Node) -> Work:
        body = body_of(node)
        lo, hi = (self.value(a) for a in node.args[:2])
        trips = max(math.ceil((hi - lo) / body.step), 0)
        if not trips:
            return Work()
        nested = any(n.op is TileOp.LOOP for n in self.placed.nodes.get(body.number, ()))
        samples = sorted({0, trips // 2, trips - 1}) if nested else [trips // 2]
        found = Work()
        for trip in samples:
            self._forget(body.number)
            self.known[body.index.serial] = lo + trip * body.step
            found = found + self.region(body.number)
        return found * (trips / len(samples)) + Work(steps=trips)

    def _forget(self, number: int) -> None:
        """Values of an earlier iteration."""
        for node in self.placed.nodes.get(number, ()):
            self.known.pop(node.serial, None)
            if node.op is TileOp.LOOP:
                self._forget(body_of(node).number)

    def value(self, node: Node) -> float:
        """A scalar, guessed where memory decides."""
        if node.serial not in self.known:
            self.known[node.serial] = self._compute(node)
        return self.known[node.serial]

    def _compute(self, node: Node) -> float:
        if node.op is TileOp.CONST:
            return float(node.attrs[0])  # type: ignore[arg-type]
        if node.op is TileOp.PARAM:
            return self.params[str(node.attrs[0])]
        if node.op is TileOp.PROGRAM_ID:
            return self.point[int(node.attrs[0])]  # type: ignore[call-overload]
        if node.op is TileOp.CAST and not node.axes:
            return self.value(node.args[0])
        if node.op is TileOp.MAP and not node.axes and node.attrs[0] in _SCALAR:
            return _SCALAR[node.attrs[0]](*(self.value(a) for a in node.args))
        return self.guess(node)


def _of_node(node: Node) -> Work:
    """The work of one node, loops apart."""
    size = math.prod(axis.size for axis in node.axes)
    if node.op is TileOp.DOT:
        axis, precision = node.attrs
        assert isinstance(axis, Axis)
        flops = 2.0 * size * axis.size
        halves = node.args[0].dtype in ("float16", "bfloat16")
        return Work(dots=flops, passes=flops * (1 if halves else PASSES[str(precision)]))
    if node.op in (TileOp.LOAD, TileOp.STORE):
        access = node.attrs[0]
        assert isinstance(access, Access)
        count = size if node.op is TileOp.LOAD else math.prod(axis.size for axis in node.args[-1].axes)
        moved = float(count * ITEM_BYTES[access.tensor.dtype])
        return Work(loaded=moved) if node.op is TileOp.LOAD else Work(stored=moved)
    if node.op is TileOp.TOP_INSERT:
        return Work(ranked=float(math.prod(axis.size for axis in node.args[1].axes)))
    if node.op in (TileOp.REDUCE, TileOp.SCAN):
        return Work(elements=float(math.prod(axis.size for axis in node.args[0].axes)))
    if node.op not in (TileOp.MAP, TileOp.MASK_IF, TileOp.CAST) or not node.axes:
        return Work()
    return Work(elements=float(size), powers=float(size) if node.attrs and node.attrs[0] in _POWERS else 0.0)


_POWERS = frozenset({Fn.EXP, Fn.EXP2, Fn.LOG, Fn.LOG2, Fn.SQRT, Fn.RSQRT, Fn.TANH, Fn.SIGMOID, Fn.DIV})

_SCALAR: dict[Fn, Callable[..., float]] = {
    Fn.ADD: lambda a, b: a + b,
    Fn.SUB: lambda a, b: a - b,
    Fn.MUL: lambda a, b: a * b,
    Fn.TRUNCDIV: lambda a, b: float(math.trunc(a / b)) if b else 0.0,
    Fn.TRUNCMOD: lambda a, b: math.fmod(a, b) if b else 0.0,
    Fn.MINIMUM: min,
    Fn.MAXIMUM: max,
    Fn.NEG: lambda a: -a,
    Fn.ABS: abs,
    Fn.LT: lambda a, b: float(a < b),
    Fn.LE: lambda a, b: float(a <= b),
    Fn.EQ: lambda a, b: float(a == b),
    Fn.NE: lambda a, b: float(a != b),
    Fn.AND: lambda a, b: float(int(a) & int(b)),
    Fn.OR: lambda a, b: float(int(a) | int(b)),
    Fn.XOR: lambda a, b: float(int(a) ^ int(b)),
    Fn.SHL: lambda a, b: float(int(a) << int(b)),
    Fn.SHR: lambda a, b: float(int(a) >> int(b)),
    Fn.NOT: lambda a: float(not a),
    Fn.WHERE: lambda c, a, b: a if c else b,
}
