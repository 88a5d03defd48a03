"""A declared layer on a target against the oracle, in fp32 at one small size."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import sparsec
from sparsec.ir.variant import dim_names
from sparsec.oracle import check, oracle

HEAD = "variant v(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV]"
DIMS: dict[str, int] = {"TQ": 60, "TK": 60, "H": 4, "HKV": 2, "D": 16, "DV": 16, "TM": 33, "M": 3, "N": 2}


def agree(text: str, target: str = "interpreter", given: dict[str, Tensor] | None = None, batch: int = 1) -> None:
    """Every output of a declared layer on a target is the oracle's."""
    variant = sparsec.parse(text)
    known: dict[str, Any] = {name: size for name, size in DIMS.items() if name in dim_names(variant)}
    inputs = sparsec.inputs(variant, B=batch, **known) | (given or {})
    found = sparsec.compile(variant, target=target)(None, **inputs)
    truth = oracle(variant, inputs, form="loop")
    outputs, truths = (x if isinstance(x, tuple) else (x,) for x in (found, truth))
    for output, true in zip(outputs, truths, strict=True):
        verdict = check(output, true, "float32")
        assert verdict, verdict.sentence
