"""Scalar functions as vector code: accuracy over their ranges, special values, NaN."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from sparsec.backends.tvm.build import compile
from sparsec.scalar.fn import ARITY, Fn
from sparsec.tile import build as tile
from sparsec.tile.arithmetic import FUNCTIONS
from sparsec.tile.language import Tensor
from sparsec.tile.schedule import Schedule

UNARY = (Fn.EXP, Fn.EXP2, Fn.LOG, Fn.LOG2, Fn.TANH, Fn.SIGMOID, Fn.SQRT, Fn.RSQRT, Fn.ABS, Fn.NEG)
BINARY = (Fn.MAXIMUM, Fn.MINIMUM, Fn.LT, Fn.LE, Fn.EQ, Fn.NE)
SPECIAL = torch.tensor([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-38, 3e38, -3e38, 127.9, -150.0])
SMALLEST = 2.0**-126  # results below are flushed to zero


def apply(fns: tuple[Fn, ...], x: torch.Tensor, y: torch.Tensor, folder: Path, vector: int) -> torch.Tensor:
    """Every function of every element, in fp32; booleans as 0 and 1."""
    with tile.Builder() as b:
        n = b.axis("n", 16)
        tensors = [Tensor(name, "float32", ("N",)) for name in ("x", "y")]
        out, length = Tensor("out", "float32", (len(fns), "N")), tile.param("N")
        at = tile.apply(Fn.ADD, tile.apply(Fn.MUL, tile.program_id(0), 16), tile.iota(n))
        loaded = [tile.load(t, at, bounds={0: length}) for t in tensors]
        for number, fn in enumerate(fns):
            value = tile.cast(tile.apply(fn, *loaded[: ARITY[fn]]), "float32")
            tile.store(out, number, at, value=value, bounds={1: length})
        tiles = tile.apply(Fn.TRUNCDIV, tile.apply(Fn.ADD, length, 15), 16)
        program = b.program("functions", [*tensors, out], [("N", "int32")], [tiles])
    result = torch.full((len(fns), len(x)), math.nan)
    compile(program, Schedule(vector=vector), folder)([x, y, result], {"N": len(x)})
    return result


@pytest.mark.parametrize("vector", [16, 1])
def test_functions_are_accurate_everywhere(vector: int, tmp_path: Path) -> None:
    x = torch.cat(
        [torch.linspace(-100, 100, 4001), torch.logspace(-30, 30, 4001), torch.linspace(-1, 1, 4001), SPECIAL]
    )
    found = apply(UNARY, x, x, tmp_path, vector)
    for fn, got in zip(UNARY, found, strict=True):
        want = FUNCTIONS[fn](x.double()).float()
        same = (got == want) | (got.isnan() & want.isnan()) | (want.abs() < SMALLEST) & (got.abs() <= 2 * SMALLEST)
        far = ((got - want).abs() / want.abs()).masked_fill(same, 0.0)
        saturated = (fn in (Fn.EXP, Fn.EXP2)) & got.isinf() & (want > 2.0**127)
        worst = far.masked_fill(saturated, 0.0).nan_to_num(9.0).max()
        assert worst < 5e-7, f"{fn.value}: {worst} at {x[far.nan_to_num(9.0).argmax()]}"


@pytest.mark.parametrize("vector", [16, 1])
def test_pairs_compare_as_ieee_says(vector: int, tmp_path: Path) -> None:
    x, y = SPECIAL.repeat_interleave(len(SPECIAL)), SPECIAL.repeat(len(SPECIAL))
    found = apply(BINARY, x, y, tmp_path, vector)
    for fn, got in zip(BINARY, found, strict=True):
        torch.testing.assert_close(got, FUNCTIONS[fn](x, y).float(), rtol=0, atol=0, equal_nan=True)
