"""Tensors that are called what printers call strides, boxes, lengths and addresses, or need for themselves."""

from __future__ import annotations

from functools import reduce

import torch

from sparsec.scalar.fn import Fn
from sparsec.testing.tile.case import Case, Tensors, randn
from sparsec.tile import build as tile
from sparsec.tile.language import Tensor

TAKEN = ("q", "q_s0", "q_s0_", "q_s0_s0", "q_t0", "q_desc", "q1", "q1_", "q_n0", "q_data0", "tl", "range", "pid0", "T_")


def names(length: int = 21) -> Case:
    """out = the sum of the inputs, of which none has the others' strides."""
    rows, dim = 8, 16
    with tile.Builder() as b:
        m, d = b.axis("m", rows), b.axis("d", dim)
        given = [Tensor(name, "float32", ("T", dim)) for name in TAKEN]
        out, total = Tensor("out", "float32", ("T", dim)), tile.param("T")
        row = tile.apply(Fn.ADD, tile.apply(Fn.MUL, tile.program_id(0), rows), tile.iota(m))
        read = [tile.load(x, row, tile.iota(d), bounds={0: total}) for x in given]
        value = reduce(lambda x, y: tile.apply(Fn.ADD, x, y), read)
        tile.store(out, row, tile.iota(d), value=value, bounds={0: total})
        tiles = tile.apply(Fn.TRUNCDIV, tile.apply(Fn.ADD, total, rows - 1), rows)
        program = b.program("names", [*given, out], [("T", "int32")], [tiles])

    def inputs(g: torch.Generator) -> Tensors:
        wide = [randn(g, length, dim * (1 + n % 4)) for n in range(len(TAKEN))]
        return {name: x[:, :dim] for name, x in zip(TAKEN, wide, strict=True)}

    def reference(t: Tensors) -> Tensors:
        return {"out": torch.stack([t[name] for name in TAKEN]).sum(0)}

    return Case("names", program, {"T": length}, inputs, {"out": (length, dim)}, reference)
