"""Weights of candidates by where their masses of keys point, a tile of tokens at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from sparsec.lower.pieces import Span
from sparsec.lower.pointwise.frame import columns
from sparsec.lower.scalars import add, ceil_div, most, mul, sub
from sparsec.plan.states.mixture_specs import Mixture, MixtureGrad
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule

Parts = list[Node]
"""A row of a head, split as its columns are."""


NOTHING = 1e-37
"""A mass of keys so small has no direction: its inverse is no number of fp32."""
ONE_TOKEN = "one_token"
"""The loop order of a decode step of one token: a program has one row."""
LEAST = -1e30
"""The score of a candidate that is left out."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A tile of tokens of one head of candidates.

    Attributes:
        rows: None for the only token there is.
        columns: of a head's dim; None where it has one.
        tensors: what the program touched, in launch order.
    """

    spec: Mixture
    rows: Axis | None
    columns: list[Span | None]
    tensors: dict[str, Tensor]

    @property
    def place(self) -> tuple[Node, Node]:
        """Batch entry and tokens."""
        if self.rows is None:
            return tile.program_id(2), tile.const(0)
        return tile.program_id(2), add(mul(tile.program_id(0), self.rows.size), tile.iota(self.rows))

    def head(self, number: int) -> Node:
        """One of the query heads of the candidates' head."""
        return add(mul(tile.program_id(1), self.spec.group), number)

    def _tensor(self, name: str, dtype: str, heads: int, last: int) -> Tensor:
        return self.tensors.setdefault(name, Tensor(name, dtype, ("B", self.spec.length, heads, last)))

    def row(self, name: str, dtype: str, heads: int, head: Node) -> Parts:
        """``[m,d]`` of a tensor in fp32."""
        tensor, place = self._tensor(name, dtype, heads, self.spec.dim), (*self.place, head)
        found = [tile.load(tensor, *place, column(c), bounds=self.bounds) for c in self.columns]
        return [tile.cast(x, "float32") for x in found]

    def keep_row(self, made: tuple[str, str], heads: int, head: Node, value: Parts) -> None:
        """Store ``[m,d]``."""
        tensor, place = self._tensor(*made, heads, self.spec.dim), (*self.place, head)
        for c, x in zip(self.columns, value, strict=True):
            tile.store(tensor, *place, column(c), value=tile.cast(x, tensor.dtype), bounds=self.bounds)

    def number(self, name: str, dtype: str, head: Node, candidate: int) -> Node:
        """``[m]`` of a tensor per token, head and candidate."""
        tensor = self._tensor(name, dtype, self.spec.heads, len(self.spec.z))
        return tile.cast(tile.load(tensor, *self.place, head, candidate, bounds=self.bounds), "float32")

    def keep_number(self, made: tuple[str, str], head: Node, candidate: int, value: Node) -> None:
        """Store ``[m]``."""
        tensor = self._tensor(*made, self.spec.heads, len(self.spec.z))
        value = tile.cast(value, tensor.dtype)
        tile.store(tensor, *self.place, head, candidate, value=value, bounds=self.bounds)

    @property
    def bounds(self) -> dict[int, tile.Value]:
        """Of the tokens."""
        return {1: tile.param(self.spec.length)}

    def dot(self, a: Parts, b: Parts) -> Node:
        """Σ_d a · b -> ``[m]``."""
        return self.over("sum", [mul(x, y) for x, y in zip(a, b, strict=True)])

    def over(self, kind: str, parts: Parts) -> Node:
        """The sum or maximum of a row."""
        pairs = zip(parts, self.columns, strict=True)
        found = [x if c is None else tile.reduce(kind, x, c.axis) for x, c in pairs]
        return reduce(add if kind == "sum" else most, found)

    def query(self, number: int) -> Parts:
        """The query of one of the heads."""
        return self.row(self.spec.q, self.spec.dtype, self.spec.heads, self.head(number))

    def candidates(self) -> list[Candidate]:
        """All of them."""
        spec = self.spec
        return [candidate(self, self.row(z, "float32", spec.key_heads, tile.program_id(1))) for z in spec.z]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A direction z/|z| ``[m,d]``, 0 where z is, and 1/|z| ``[m]``."""

    unit: Parts
    inverse: Node


def candidate(at: Rows, z: Parts) -> Candidate:
    """The direction of z, whose square need not be a number of fp32."""
    size = at.over("max", [tile.apply(Fn.ABS, x) for x in z])
    empty = tile.apply(Fn.LE, size, NOTHING)
    by = tile.apply(Fn.DIV, tile.const(1.0), tile.apply(Fn.WHERE, empty, 1.0, size))
    small = [mul(x, by) for x in z]
    root = tile.apply(Fn.RSQRT, tile.apply(Fn.WHERE, empty, 1.0, at.dot(small, small)))
    return Candidate([mul(x, root) for x in small], mul(by, root))


def shares(at: Rows, number: int, query: Parts, found: Sequence[Candidate]) -> list[Node]:
    """The softmax of one head over the candidates ``[m]`` each, gains left out."""
    spec, head = at.spec, at.head(number)
    scores = [mul(spec.scale, at.dot(query, c.unit)) for c in found]
    if spec.bias is not None:
        scores = [add(s, at.number(*spec.bias, head, n)) for n, s in enumerate(scores)]
    return softmax(spec, scores)


def softmax(spec: Mixture, scores: Sequence[Node]) -> list[Node]:
    """The softmax over the candidates that stay ``[m]`` each."""
    kept = _kept(spec, scores)
    seen = [s if k is None else tile.apply(Fn.WHERE, k, s, LEAST) for s, k in zip(scores, kept, strict=True)]
    top = reduce(most, seen)
    masses = [tile.apply(Fn.EXP, sub(s, top)) for s in seen]
    masses = [m if k is None else tile.apply(Fn.WHERE, k, m, 0.0) for m, k in zip(masses, kept, strict=True)]
    total = reduce(add, masses)
    return [tile.apply(Fn.DIV, m, total) for m in masses]


def _kept(spec: Mixture, scores: Sequence[Node]) -> list[Node | None]:
    """Whether each candidate is among the ``top`` that stay; None where all it takes is its place among the first."""
    count, first = len(scores), min(spec.first, len(scores))
    if spec.top is None or spec.top >= count:
        return [None] * count
    free, rounds = min(first, spec.top), max(spec.top - first, 0)
    no = tile.apply(Fn.LT, tile.const(1), 0)
    taken = [no] * (count - first)
    for _ in range(rounds):
        best = _foremost(spec, scores[first:], taken)
        taken = [tile.apply(Fn.OR, t, tile.apply(Fn.EQ, best, n)) for n, t in enumerate(taken)]
    return [None] * free + [no] * (first - free) + taken


def _foremost(spec: Mixture, scores: Sequence[Node], taken: Sequence[Node]) -> Node:
    """The number of the best that is not taken: a later one only if it is more than a tie above."""
    best: Node = tile.const(LEAST)
    number: Node = tile.const(0)
    for n, (score, gone) in enumerate(zip(scores, taken, strict=True)):
        left = tile.apply(Fn.WHERE, gone, LEAST, score)
        above = tile.apply(Fn.LT, add(best, tile.const(spec.tie)), left)
        best, number = tile.apply(Fn.WHERE, above, left, best), tile.apply(Fn.WHERE, above, n, number)
    return number


def rows_of(builder: tile.Builder, spec: Mixture, schedule: Schedule) -> Rows:
    """The tile of the program in hand."""
    rows = None if schedule.order == ONE_TOKEN else builder.axis("m", schedule.rows)
    return Rows(spec, rows, columns(builder, "d", spec.dim, schedule), {})


def finished(builder: tile.Builder, name: str, at: Rows) -> Program:
    """One (tile of tokens, head of candidates, batch) per grid point."""
    spec = at.spec
    names = dict.fromkeys(["B", "TQ", "TK", "q_offset", spec.length])
    tiles = tile.const(1) if at.rows is None else ceil_div(tile.param(spec.length), at.rows.size)
    grid = (tiles, tile.const(spec.key_heads), tile.param("B"))
    return builder.program(name, list(at.tensors.values()), [(n, "int32") for n in names], grid)


def lower(spec: Mixture, schedule: Schedule) -> Program:
    """q ``[B,N,H,D]`` and masses -> weights ``[B,N,H,C]``."""
    with tile.Builder() as builder:
        at = rows_of(builder, spec, schedule)
        found = at.candidates()
        for number in range(spec.group):
            head = at.head(number)
            for n, share in enumerate(shares(at, number, at.query(number), found)):
                value = share if spec.gain is None else mul(share, at.number(*spec.gain, head, n))
                at.keep_number((spec.out, "float32"), head, n, value)
        return finished(builder, spec.name, at)


def column(column: Span | None) -> Node:
    """The index of some columns of a row."""
    return tile.const(0) if column is None else column.index()


def default(spec: object, target: str) -> Schedule:
    """A few tokens per program: the kernel only moves memory. Fewer where it adds terms, which take registers."""
    triton, adds = target.startswith("triton"), isinstance(spec, MixtureGrad) and bool(spec.terms)
    return Schedule(rows=8 if triton and adds else 16, warps=4, stages=1, lanes=("d",), split_dims=triton)


def space(spec: object, target: str) -> dict[str, tuple[object, ...]]:
    """Tokens per program, and warps."""
    rows = (8, 16, 32)
    return {"rows": rows, "warps": (1, 2, 4, 8)} if target.startswith("triton") else {"rows": rows}
