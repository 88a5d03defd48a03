"""Gradients of a mixture's queries, masses, biases and gains, a tile of tokens at a time.

With p the softmax, w = gain p, u = z/|z| and s = scale q · u + bias:

    ds = p (gain dw − Σ p gain dw),   d gain = p dw,   dq = scale Σ_c ds u,   dz = Σ_h scale ds (q − (q · u) u) / |z|
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.mixture.weights import Candidate, Parts, Rows, finished, rows_of, shares
from sparsec.plan.states.mixture_specs import MixtureGrad
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program
from sparsec.tile.schedule import Schedule


def lower(spec: MixtureGrad, schedule: Schedule) -> Program:
    """What the mixture read, and the gradient of its weights -> all that is asked for."""
    forward = spec.forward
    with tile.Builder() as builder:
        at = rows_of(builder, forward, schedule)
        found = at.candidates()
        heads = [_head(spec, at, number, found) for number in range(forward.group)]
        for n, made in enumerate(spec.grad_z):
            if made is not None:
                parts = [reduce(add, each) for each in zip(*(grads[n] for grads in heads), strict=True)]
                at.keep_row(made, forward.key_heads, tile.program_id(1), parts)
        return finished(builder, spec.name, at)


def _head(spec: MixtureGrad, at: Rows, number: int, found: Sequence[Candidate]) -> list[Parts]:
    """Stores the gradients that are one query head's own; those of the masses through this head."""
    forward, head, query = spec.forward, at.head(number), at.query(number)
    share = shares(at, number, query, found)
    slopes = _slopes(spec, at, head, share)
    scaled = [mul(forward.scale, s) for s in slopes]
    if spec.grad_q is not None:
        parts = [
            reduce(add, (mul(s, c.unit[k]) for s, c in zip(scaled, found, strict=True))) for k in range(len(query))
        ]
        for term in spec.terms:
            parts = [add(x, y) for x, y in zip(parts, at.row(*term, forward.heads, head), strict=True)]
        at.keep_row(spec.grad_q, forward.heads, head, parts)
    return [_across(at, query, c, mul(s, c.inverse)) for s, c in zip(scaled, found, strict=True)]


def _slopes(spec: MixtureGrad, at: Rows, head: Node, share: Sequence[Node]) -> list[Node]:
    """The gradients of the scores ``[m]``; those of gains and biases are stored."""
    gain, passed = spec.forward.gain, []
    for n, p in enumerate(share):
        grad = at.number(spec.grad, "float32", head, n)
        if spec.grad_gain is not None:
            at.keep_number(spec.grad_gain, head, n, mul(p, grad))
        passed.append(grad if gain is None else mul(grad, at.number(*gain, head, n)))
    mean = reduce(add, (mul(p, g) for p, g in zip(share, passed, strict=True)))
    slopes = [mul(p, sub(g, mean)) for p, g in zip(share, passed, strict=True)]
    for n, slope in enumerate(slopes):
        if spec.grad_bias is not None:
            at.keep_number(spec.grad_bias, head, n, slope)
    return slopes


def _across(at: Rows, query: Parts, c: Candidate, slope: Node) -> Parts:
    """slope · (q − (q · u) u)."""
    along = at.dot(query, c.unit)
    return [mul(slope, sub(q, mul(along, u))) for q, u in zip(query, c.unit, strict=True)]
