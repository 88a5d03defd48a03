"""What a delta rule's walk back loads ahead: tiles, and of what is one number per token nothing but decays."""

from __future__ import annotations

from typing import Any

import pytest

import sparsec
from sparsec.lower.across.piece import loads
from sparsec.runtime.across import programs
from sparsec.tile.language import Program

SIZES: dict[str, Any] = {"B": 1, "T": 512, "H": 2, "HKV": 2, "D": 128, "DV": 128, "q_offset": 0}


def backward(preset: str, dims: dict[str, Any], **knobs: Any) -> dict[str, Program]:
    """The programs of a backward on an H100, by the end of their names."""
    made = sparsec.compile(sparsec.preset(preset, **knobs), target="triton:sm_90")
    names = tuple(made.variant.inputs)
    half = made.training.halves(dims, "bfloat16", names).split.backward
    steps = [s.program for p in programs(made, half, dims)[1].values() for s in p.steps]
    return {p.name: p for p in steps}


@pytest.mark.parametrize(("preset", "knobs"), [("gdn", {}), ("gdn", {"raw": True}), ("sse_gdn", {"raw": True})])
def test_strengths_take_no_room(preset: str, knobs: dict[str, Any]) -> None:
    """However they come: as given, made by a map in fp32, or times a weight."""
    dims = SIZES | ({"DX": 16} if preset == "sse_gdn" else {})
    found = [p for name, p in backward(preset, dims, **knobs).items() if name.endswith(("_grad_states", "_grad_ends"))]
    assert found
    for program in found:
        wide = {t.name for t in program.tensors if t.dtype == "float32" and t.rank == 3} & loads(program)
        assert wide and all(name.endswith(("_sums",)) or "_unit_" in name for name in wide), wide
