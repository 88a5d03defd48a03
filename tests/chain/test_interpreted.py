"""Whole variants on the tile interpreter, every link of the chain of trust held to the oracle, with true rounding.

The cases are a covering design: any two of variant, lengths, heads, dims, dtype, layout, schedules and batch meet.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sparsec.testing.inputs.covering import pairwise
from sparsec.testing.inputs.variants import CHUNK, EVERY
from sparsec.testing.whole.case import WholeCase

C = CHUNK
FACTORS: dict[str, list[Any]] = {
    "variant": [name for name in EVERY if name != "documents"],
    "lengths": [
        (1, 1, None), (C - 1, C - 1, None), (C, C, None), (C + 1, C + 1, None), (67, 67, None), (99, 99, None),
        (1, 67, None), (23, 97, None), (33, 17, None), (20, 67, 0), (5, 17, 60),
    ],
    "dims": [(32, 32), (48, 80), (64, 64), (80, 48), (96, 128), (128, 96), (192, 32), (256, 256), (32, 512)],
    "heads": [(2, 2), (3, 1), (4, 2), (8, 2), (5, 1), (16, 1)],
    "dtype": ["bfloat16", "float16", "float32"],
    "layout": ["bthd", "bhtd", "inset"],
    "style": ["gpu", "cpu", "flipped"],
    "batch": [1, 2],
    "numbers": ["normal", "steep", "low", "ties"],
}  # fmt: skip
DESIGN = pairwise(FACTORS)
FEWEST = 128
"""Output numbers of a case in half precision. Of 64, one draw in forty is 2.5 deviations off, beyond the bound."""


def enough(case: WholeCase) -> WholeCase:
    """The case with as many entries in the batch as give enough numbers to judge."""
    numbers = case.batch * case.lengths[0] * case.heads[0] * case.dims[1]
    few = case.dtype != "float32" and numbers < FEWEST
    return replace(case, batch=case.batch * -(-FEWEST // numbers)) if few else case


CASES = [enough(WholeCase(**case)) for case in DESIGN]  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_link_holds(case: WholeCase) -> None:
    assert case.wrong() == []


@pytest.mark.parametrize("lengths", [(1, 1, None), (67, 67, None), (99, 99, None), (23, 97, None), (20, 67, 0)])
def test_packed_documents(lengths: tuple[int, int, int | None]) -> None:
    assert WholeCase("documents", lengths, dtype="bfloat16", batch=2).wrong() == []


def test_the_design_covers_every_pair() -> None:
    made = [list(case.values()) for case in DESIGN]
    for f, one in enumerate(FACTORS):
        for g, other in enumerate(FACTORS):
            if f < g:
                met = {(case[f], case[g]) for case in made}
                assert len(met) == len(FACTORS[one]) * len(FACTORS[other])
