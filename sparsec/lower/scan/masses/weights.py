"""Weights of candidates from their scores, each where its level has it: by token, or sorted by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from sparsec.lower.called import with_extents
from sparsec.lower.scalars import add, ceil_div, mul, sub
from sparsec.lower.scan.cell import padded
from sparsec.lower.scan.masses.level import Prepared
from sparsec.lower.scan.mixture.weights import Parts, Rows, column, softmax
from sparsec.lower.scan.runs import Runs
from sparsec.plan.states.mixture_specs import Mixture, MixtureGrad
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Numbers:
    """A number or a row per token and query head, as a level has it.

    Attributes:
        tensor: in the level's order, its extents called as in the kernel.
        places: where each token is in that order; None where it is where it was.
    """

    tensor: Tensor
    places: Tensor | None
    runs: Runs | None

    def load(self, at: tuple[Node, Node], limits: dict[int, tile.Value], state: Node, *index: Node) -> Node:
        """Of some tokens ``at`` (batch, tokens), whose number is bounded, of the ``state`` head of what asks."""
        if self.places is None or self.runs is None:
            return tile.load(self.tensor, *at, *index, bounds=limits)
        listed = self.runs.listed(state)
        place = tile.load(self.places, *at, listed, 0, bounds={1: limits[1]})
        return tile.load(self.tensor, at[0], place, *index, bounds={d: n for d, n in limits.items() if d > 1})

    def row(self, at: Rows, head: Node) -> Parts:
        """``[m,d]`` in fp32, where there is a row per token."""
        found = [self.load(at.place, at.bounds, tile.program_id(1), head, column(c)) for c in at.columns]
        return [tile.cast(x, "float32") for x in found]

    @property
    def tensors(self) -> list[Tensor]:
        """What is read."""
        return [self.tensor] + ([self.places] if self.places is not None else [])


def numbers(ahead: Prepared, tensor: Tensor, ending: str) -> Numbers:
    """A tensor of one level, whose launch parameters have an ending."""
    called = {n: f"{n}_{ending}" for n in ahead.params}
    places = with_extents(ahead.runs.places, called) if ahead.runs is not None else None
    return Numbers(with_extents(tensor, called), places, ahead.runs)


@dataclass(frozen=True, slots=True)
class _Heads:
    """Some tokens and all query heads ``[m,h]``, as numbers per token lie in memory."""

    spec: Mixture
    tokens: Axis
    heads: Axis

    @property
    def at(self) -> tuple[Node, Node]:
        """Batch entry and tokens."""
        return tile.program_id(1), add(mul(tile.program_id(0), self.tokens.size), tile.iota(self.tokens))

    @property
    def head(self) -> Node:
        """Query heads; ``state`` those of their masses."""
        return tile.iota(self.heads)

    @property
    def state(self) -> Node:
        """The head of the masses that each asks."""
        return tile.apply(Fn.TRUNCDIV, self.head, self.spec.group)

    @property
    def limits(self) -> dict[int, tile.Value]:
        """Of tokens and heads."""
        return {1: tile.param(self.spec.length)} | ({2: self.spec.heads} if self.heads.size > self.spec.heads else {})

    def tensor(self, name: str, dtype: str = "float32") -> Tensor:
        """A number per token, head and candidate."""
        return Tensor(name, dtype, ("B", self.spec.length, self.spec.heads, len(self.spec.z)))

    def read(self, tensor: Tensor, candidate: int) -> Node:
        """Those of one candidate."""
        return tile.cast(tile.load(tensor, *self.at, self.head, candidate, bounds=self.limits), "float32")

    def keep(self, tensor: Tensor, value: Node, *candidate: int) -> None:
        """Store numbers, of one candidate or of a tensor that has no others."""
        value = tile.cast(value, tensor.dtype)
        tile.store(tensor, *self.at, self.head, *candidate, value=value, bounds=self.limits)

    def program(self, builder: tile.Builder, name: str, tensors: Sequence[Tensor]) -> Program:
        """One (tile of tokens, batch) per grid point."""
        names = dict.fromkeys(["B", "TQ", "TK", "q_offset", self.spec.length])
        grid = (ceil_div(tile.param(self.spec.length), self.tokens.size), tile.param("B"))
        used = {t.name: t for t in tensors}
        return builder.program(name, list(used.values()), [(n, "int32") for n in names], grid)


def _heads(builder: tile.Builder, spec: Mixture, schedule: Schedule) -> _Heads:
    return _Heads(spec, builder.axis("m", schedule.rows), builder.axis("h", padded(spec.heads)))


def lower(spec: Mixture, scores: Sequence[Numbers], schedule: Schedule) -> Program:
    """Scores of all candidates -> weights ``[B,N,H,C]``."""
    with tile.Builder() as builder:
        at = _heads(builder, spec, schedule)
        out, tensors = at.tensor(spec.out), [t for s in scores for t in s.tensors]
        found = [s.load(at.at, at.limits, at.state, at.head) for s in scores]
        if spec.bias is not None:
            bias = at.tensor(*spec.bias)
            found = [add(s, at.read(bias, n)) for n, s in enumerate(found)]
            tensors.append(bias)
        for n, share in enumerate(softmax(spec, found)):
            at.keep(out, share, n)
        return at.program(builder, f"{spec.name}_weights", [*tensors, out])


def lower_slopes(spec: MixtureGrad, made: Sequence[Tensor], schedule: Schedule) -> Program:
    """Gradients of the scores ``[B,N,H]``, and of biases, from those of the weights w: w (dw − Σ w dw)."""
    with tile.Builder() as builder:
        at = _heads(builder, spec.forward, schedule)
        weights, slopes = at.tensor(spec.forward.out), at.tensor(spec.grad)
        tensors = [weights, slopes, *made]
        share, grads = ([at.read(t, n) for n in range(len(made))] for t in (weights, slopes))
        mean = reduce(add, map(mul, share, grads))
        for n, (p, g) in enumerate(zip(share, grads, strict=True)):
            value = mul(p, sub(g, mean))
            at.keep(made[n], value)
            if spec.grad_bias is not None:
                tensors.append(at.tensor(*spec.grad_bias))
                at.keep(tensors[-1], value, n)
        return at.program(builder, f"{spec.name}_slopes", tensors)
