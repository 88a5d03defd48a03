"""Merging branches of a step straight from the parts that programs with shares of their keys left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

from sparsec.lower import combine
from sparsec.lower.decode import merge as decode_merge
from sparsec.lower.gathered import chunks
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.pieces import Span, spans
from sparsec.lower.scalars import add, mul
from sparsec.plan.specs import Combine, GatheredAttention
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Tensor
from sparsec.tile.schedule import Schedule


@dataclass(frozen=True, slots=True)
class InParts:
    """A branch that nothing but its merge reads: the attention that leaves it, and how many parts there are."""

    spec: GatheredAttention
    splits: int

    @property
    def out(self) -> str:
        """The branch's name."""
        return self.spec.out


def lower(spec: Combine, schedule: Schedule, parts: Mapping[str, InParts]) -> Lowered:
    """One (token, head, sequence) per grid point; ``parts`` are branches by name, the others are read as they are."""
    short = decode_merge.short_lived(schedule, max(p.splits for p in parts.values()))
    with tile.Builder() as builder:
        values, own = spans(builder, "e", spec.value_dim, schedule), combine.tensors(spec)
        place = (tile.program_id(2), tile.program_id(0), tile.program_id(1))
        branches = [_Branch(builder, name, own[name], place, parts.get(name)) for name in spec.branches]
        named = {b.lse_name: b for b in branches if b.lse_name is not None}

        def number(name: str, *last: int) -> Node:
            if name in named:
                return named[name].lse
            return tile.cast(tile.load(own[name], *place, *last), "float32")

        factors, lse = combine.factors(spec, combine.numbers(spec, number))
        for span in values:
            found = [b.read(span) for b in branches]
            total = reduce(add, (mul(f, o) if f is not None else o for f, o in zip(factors, found, strict=True)))
            tile.store(own[spec.out], *place, span.index(), value=tile.cast(total, spec.dtype))
        if spec.lse is not None:
            assert lse is not None
            tile.store(own[spec.lse], *place, value=lse)
        gone = {n for b in branches if b.parts is not None for n in (b.name, b.lse_name)}
        tensors = dict.fromkeys([t for n, t in own.items() if n not in gone] + [t for b in branches for t in b.tensors])
        params = [(name, "int32") for name in ("B", "TQ", "TK", "q_offset")]
        grid = (tile.param("TQ"), tile.const(spec.heads), tile.param("B"))
        program = builder.program(spec.name, list(tensors), params, grid)
    return Lowered((Step(program, short),))


class _Branch:
    """One branch of a row: its columns, and its log-sum-exp where it comes in parts."""

    def __init__(
        self, builder: tile.Builder, name: str, own: Tensor, place: tuple[Node, ...], parts: InParts | None
    ) -> None:
        self.name, self.own, self.place, self.parts = name, own, place, parts
        self.lse_name: str | None = None
        self.tensors: list[Tensor] = []
        self._shares: Node | None = None
        if parts is None:
            return
        self._axis: Axis = builder.axis(f"{name}_s", parts.splits)
        self._found = decode_merge.parts(parts.spec, parts.splits)
        self.lse_name, self.tensors = parts.spec.lse, list(self._found.tensors)
        if self._found.lse is not None:
            buffers = chunks.tensors(parts.spec)
            if parts.spec.sink not in (None, "zero"):
                assert parts.spec.sink is not None
                self.tensors.append(buffers[parts.spec.sink])
            merged = decode_merge.shares(parts.spec, self._found, place, tile.iota(self._axis), buffers)
            self._shares, self.lse = merged

    def read(self, span: Span) -> Node:
        """Some columns, fp32."""
        if self.parts is None:
            return tile.cast(tile.load(self.own, *self.place, span.index()), "float32")
        part = tile.load(self._found.out, *self.place, tile.iota(self._axis), span.index())
        return tile.reduce("sum", part if self._shares is None else mul(part, self._shares), self._axis)
