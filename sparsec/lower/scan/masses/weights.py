"""Weights of candidates from their scores, each where its level has it: by token, or sorted by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from sparsec.lower.called import with_extents
from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.masses.level import Prepared
from sparsec.lower.scan.mixture.weights import Parts, Rows, column, finished, softmax
from sparsec.lower.scan.runs import Runs
from sparsec.plan.states.mixture_specs import Mixture, MixtureGrad
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
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

    def _load(self, at: Rows, *index: Node) -> Node:
        batch, token = at.place
        if self.places is None or self.runs is None:
            return tile.load(self.tensor, batch, token, *index, bounds=at.bounds)
        listed = tile.program_id(1) if self.runs.route.lists > 1 else tile.const(0)
        place = tile.load(self.places, batch, token, listed, 0, bounds=at.bounds)
        return tile.load(self.tensor, batch, place, *index)

    def read(self, at: Rows, head: Node) -> Node:
        """``[m]`` of a tile of tokens."""
        return self._load(at, head)

    def row(self, at: Rows, head: Node) -> Parts:
        """``[m,d]`` in fp32, where there is a row per token."""
        return [tile.cast(self._load(at, head, column(c)), "float32") for c in at.columns]

    @property
    def tensors(self) -> list[Tensor]:
        """What is read."""
        return [self.tensor] + ([self.places] if self.places is not None else [])


def numbers(ahead: Prepared, tensor: Tensor, ending: str) -> Numbers:
    """A tensor of one level, whose launch parameters have an ending."""
    called = {n: f"{n}_{ending}" for n in ahead.params}
    places = with_extents(ahead.runs.places, called) if ahead.runs is not None else None
    return Numbers(with_extents(tensor, called), places, ahead.runs)


def lower(spec: Mixture, scores: Sequence[Numbers], schedule: Schedule) -> Program:
    """Scores of all candidates -> weights ``[B,N,H,C]``; one (tokens, head of candidates, batch) per grid point."""
    with tile.Builder() as builder:
        at = Rows(spec, builder.axis("m", schedule.rows), [], {t.name: t for s in scores for t in s.tensors})
        for number in range(spec.group):
            head = at.head(number)
            found = [s.read(at, head) for s in scores]
            if spec.bias is not None:
                found = [add(s, at.number(*spec.bias, head, n)) for n, s in enumerate(found)]
            for n, share in enumerate(softmax(spec, found)):
                value = share if spec.gain is None else mul(share, at.number(*spec.gain, head, n))
                at.keep_number((spec.out, "float32"), head, n, value)
        return finished(builder, f"{spec.name}_weights", at)


def lower_slopes(spec: MixtureGrad, made: Sequence[Tensor], schedule: Schedule) -> Program:
    """Gradients of the scores ``[B,N,H]``, and of biases, from those of the weights w: w (dw − Σ w dw)."""
    forward = spec.forward
    with tile.Builder() as builder:
        at = Rows(forward, builder.axis("m", schedule.rows), [], {t.name: t for t in made})
        for number in range(forward.group):
            head, count = at.head(number), range(len(made))
            share = [at.number(forward.out, "float32", head, n) for n in count]
            grads = [at.number(spec.grad, "float32", head, n) for n in count]
            mean = reduce(add, map(mul, share, grads))
            for n, (p, g) in enumerate(zip(share, grads, strict=True)):
                value = mul(p, sub(g, mean))
                tile.store(made[n], *at.place, head, value=value, bounds=at.bounds)
                if spec.grad_bias is not None:
                    at.keep_number(spec.grad_bias, head, n, value)
        return finished(builder, f"{spec.name}_slopes", at)
