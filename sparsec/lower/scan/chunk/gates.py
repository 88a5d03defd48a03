"""Decays summed up inside each chunk, and write strengths in fp32: the first program of chunked scans with either."""

from __future__ import annotations

import math

from sparsec.lower.scalars import add, mul
from sparsec.lower.scan.chunk import factors, strengths, units
from sparsec.lower.scan.chunk.parts import CHUNKS, Chunk, Chunked
from sparsec.lower.scan.runs import CUT, Runs
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program

GONE = -160.0
"""A base-2 log-decay that leaves nothing in fp32, and beside which the digits of others are still seen."""

LEAST = -100.0
"""Log-decays below count as this: exp of it is 0 in fp32, and sums of it keep their digits."""


def lower(own: Chunked) -> Program:
    """decay ``[B,N,HKV]`` -> sums ``[B,HKV,tokens]`` of base-2 logarithms, per chunk; beta -> rates of that shape.

    Of unit keys rates are times r, which stands for their lengths. Beside them what walks over segments read of both.
    """
    w = own.writes
    with tile.Builder() as builder:
        tokens, heads = builder.axis("n", own.chunk), builder.axis("h", 16)
        chunk = Chunk(own, tile.program_id(2), tile.program_id(1), tile.program_id(0))
        head = add(mul(tile.program_id(1), heads.size), tile.iota(heads))
        tensors, values = [], []
        for operand, made in ((w.decay, own.sums), (w.beta, own.rates)):
            if operand is None:
                continue
            given, bounds = own.tensor(operand, w.heads), {1: tile.param(w.length), 2: tile.lift(w.heads)}
            read = tile.load(given, chunk.batch, chunk.token(tokens), head, bounds=dict(bounds))
            value = tile.scan(log2_decay(read), tokens) if operand is w.decay else tile.cast(read, "float32")
            if own.fades_out and own.runs is not None and operand is w.decay:
                value = add(value, _beginning(own.runs, chunk, head))
                tensors.append(own.runs.stretches)
            if operand is w.beta:
                tensors += strengths.store(chunk, (chunk.token(tokens), head), value)
            if w.k.unit and operand is w.beta:
                lengths = units.tensor(own, w.k, w.heads)
                place = (chunk.batch, head, chunk.token(tokens))
                value = mul(value, tile.load(lengths, *place, bounds={1: tile.lift(w.heads)}))
                tensors.append(lengths)
            tile.store(made, chunk.batch, head, chunk.token(tokens), value=value, bounds={1: w.heads})
            tensors += [given, made]
            values.append(value)
        if factors.tensors(own):
            tensors += factors.store(chunk, head, tokens, *values)
        grid = (tile.param(CHUNKS), -(-w.heads // heads.size), tile.param("B"))
        return own.program(builder, "sums", tensors, grid)


def _beginning(runs: Runs, chunk: Chunk, head: Node) -> Node:
    """``GONE`` where the chunk is the first of a part, else 0."""
    several, bounds = runs.route.lists > 1, {2: tile.param(CUT)}
    if several:
        bounds[1] = tile.const(runs.route.lists)
    listed = head if several else tile.const(0)
    first = tile.load(runs.stretches, chunk.batch, listed, chunk.number, 1, bounds=dict(bounds))
    return tile.apply(Fn.WHERE, tile.apply(Fn.LT, 0, first), tile.const(GONE), 0.0)


def log2_decay(decay: Node) -> Node:
    """A log-decay in base 2, bounded from below."""
    bounded = tile.apply(Fn.MAXIMUM, tile.cast(decay, "float32"), LEAST)
    return mul(bounded, 1.0 / math.log(2.0))
