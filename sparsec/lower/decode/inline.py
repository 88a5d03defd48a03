"""Maps of new tokens, worked out by the scans that read them: a launch less, where a token's rows are few.

load(mapped[b, n, h, d])  ->  fn(load(x[b, n, h, d]), …), in fp32, which is not rounded as it would be to be stored
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce

from sparsec.lower.pieces import Span
from sparsec.lower.pointwise.rows import through
from sparsec.lower.scalars import both, emit_scores
from sparsec.plan.maps.map_specs import Map, MapSource
from sparsec.plan.plan import Kernel
from sparsec.plan.states.scan_specs import Scan
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Access, Node, Program, Tensor, TileOp, access_of
from sparsec.tile.rewrite import accesses, rewrite

Index = tuple[Node, ...]
Bounds = Mapping[int, Node]


def chosen(kernels: Sequence[Kernel], programs: Mapping[str, Sequence[Program]], kept: Iterable[str]) -> dict[str, Map]:
    """The maps that scans and other such maps alone read, by result; ``programs`` are those of scans by kernel.

    Results in ``kept`` are for the caller.
    """
    outputs = set(kept)
    found = {k.spec.out: k.spec for k in kernels if isinstance(k.spec, Map) and k.spec.out not in outputs}
    while True:
        left = {name: m for name, m in found.items() if all(_takes(k, m, found, programs) for k in kernels)}
        if len(left) == len(found):
            return found
        found = left


def _takes(kernel: Kernel, made: Map, maps: Mapping[str, Map], programs: Mapping[str, Sequence[Program]]) -> bool:
    """Whether a kernel does not read a map's result, or may work it out."""
    if made.out not in kernel.reads:
        return True
    if isinstance(kernel.spec, Map):
        return kernel.spec.out in maps and all(s.row == "none" for s in made.sources)
    return isinstance(kernel.spec, Scan) and all(fits(p, made) for p in programs[kernel.name])


def fits(program: Program, made: Map) -> bool:
    """Whether a program may work out a map wherever it reads its result, to go on in fp32."""
    known = {name for name, _ in program.params}
    lengths = {n for shape in (made.shape, *(s.shape for s in made.sources)) for n in shape if isinstance(n, str)}
    loads = [n for n, a in accesses(program) if a.tensor.name == made.out]
    nodes = tile.reachable(program.effects)
    casts = made.dtype == "float32" or all(n.op is TileOp.CAST for n in nodes if set(loads) & set(n.args))
    return lengths <= known and casts and all(n.op is TileOp.LOAD and _whole(n, made) for n in loads)


def _whole(load: Node, made: Map) -> bool:
    """Whether a load has all of a row that a row function needs."""
    rows = [s for s in made.sources if s.row != "none"]
    if any(s.top for s in rows):
        return False  # what is chosen is found in a loop of its own
    last, width = load.args[len(made.shape) - 1], made.shape[-1]
    if not rows:
        return True
    whole = last.op is TileOp.IOTA and last.axes[0].size == width
    return whole and all(s.shape[-1] == width for s in rows)


def inlined(program: Program, maps: Mapping[str, Map]) -> Program:
    """The program with maps in place of their results."""
    if not any(t.name in maps for t in program.tensors):
        return program
    rule = _Inlined(maps, {t.name: t for t in program.tensors if t.name not in maps})
    found = rewrite(program, rule, program.tensors)
    return replace(found, tensors=tuple(rule.tensors.values()))


class _Inlined:
    """The rule: what becomes of a load.

    Attributes:
        tensors: what the new program touches: the old one's, and the maps' sources.
    """

    def __init__(self, maps: Mapping[str, Map], tensors: dict[str, Tensor]) -> None:
        self.maps, self.tensors = maps, tensors

    def __call__(self, node: Node, args: tuple[Node, ...]) -> Node | None:
        """The map's value; None for other nodes."""
        if node.op is not TileOp.LOAD or access_of(node).tensor.name not in self.maps:
            return None
        access = access_of(node)
        rank = access.tensor.rank
        bounds = dict(zip(access.bounded, args[rank:], strict=True))
        return self._value(self.maps[access.tensor.name], access, args[:rank], bounds)

    def _value(self, made: Map, access: Access, index: Index, bounds: Bounds) -> Node:
        """A map at an index; outside its bounds what a load would have given."""
        env = {f"x{n}": self._source(made, s, index, bounds) for n, s in enumerate(made.sources)}
        zeros = tile.full(0.0, *tile.union(*index))
        value = emit_scores(made.fn, env, None, zeros)
        if not bounds or access.other is None:
            return value
        inside: Node = reduce(both, [tile.apply(Fn.LT, index[d], limit) for d, limit in bounds.items()])
        return tile.apply(Fn.WHERE, inside, value, tile.const(access.other, "float32"))

    def _source(self, made: Map, source: MapSource, index: Index, bounds: Bounds) -> Node:
        """x of a source, in fp32."""
        ahead = len(made.shape) - len(source.shape)
        spread = [extent == 1 != made.shape[d + ahead] for d, extent in enumerate(source.shape)]
        places = [tile.const(0) if one else index[d + ahead] for d, one in enumerate(spread)]
        limits: dict[int, tile.Value] = {
            d: bounds[d + ahead] for d, one in enumerate(spread) if not one and d + ahead in bounds
        }
        rank = len(source.stored)
        x = self._read(source, places[:rank], {d: limit for d, limit in limits.items() if d < rank})
        columns: Sequence[Span | None] = [Span(0, places[-1].axes[0]) if places[-1].axes else None]
        return through(source, [x], columns)[0]

    def _read(self, source: MapSource, places: Sequence[Node], limits: dict[int, tile.Value]) -> Node:
        """A source in fp32, itself a map perhaps."""
        if source.name in self.maps:
            bounds = {d: tile.lift(limit) for d, limit in limits.items()}
            made = self.maps[source.name]
            access = Access(Tensor(source.name, source.dtype, made.shape), tuple(limits))
            return self._value(made, access, tuple(places), bounds)
        tensor = self.tensors.setdefault(source.name, Tensor(source.name, source.dtype, source.stored))
        return tile.cast(tile.load(tensor, *places, bounds=limits), "float32")
