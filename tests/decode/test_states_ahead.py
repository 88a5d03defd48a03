"""Steps of matrix states, compiled for a GPU that is not here: they fit, nothing spills, 16 bytes move at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import sparsec
from sparsec.backends.triton.compile import compile_for
from sparsec.lower.lowered import Step
from sparsec.runtime import launch
from sparsec.runtime.compiled import compile
from sparsec.runtime.decode import kernels as decode_kernels
from sparsec.runtime.target import Target
from sparsec.testing.triton.ahead import job, misfits

SIZES: dict[str, int] = {"B": 64, "TQ": 1, "TK": 1, "q_offset": 0, "H": 16, "HKV": 16, "DX": 2048}
CASES: list[tuple[str, dict[str, Any], int, int]] = [
    ("gdn", {}, 128, 128),
    ("kda", {"raw": True}, 64, 64),
    ("rwkv7", {"raw": True}, 128, 256),
    ("gdn", {"raw": True}, 256, 512),
    ("sse", {"rule": "gdn"}, 128, 128),
    ("rsa", {"raw": True}, 128, 128),
]


class Noted(launch.Bind):
    """A program that was to be built."""


def steps_of(name: str, knobs: dict[str, Any], rows: int, cols: int, folder: Path) -> list[Step]:
    """The programs of a step of one token, in place."""
    found: list[Step] = []

    def note(step: Step, target: Target, where: Path) -> launch.Bind:
        found.append(step)
        return Noted()

    with patch.object(decode_kernels, "build", note):
        made = compile(sparsec.preset(name, **knobs), "triton:sm_90", folder)
        cache = made.decoder.new(64, deterministic=False)
        built = made.decoder.built(cache, {**SIZES, "D": rows, "DV": cols}, "bfloat16", 1)
    assert len(built.in_place) == len(made.decoder.spec.states)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "knobs", "rows", "cols"), CASES)
def test_steps_fit(name: str, knobs: dict[str, Any], rows: int, cols: int, tmp_path: Path) -> None:
    wanted = [
        (s.program.name, False, job(s.program, s.schedule, "sm_90"))
        for s in steps_of(name, knobs, rows, cols, tmp_path)
    ]
    assert misfits(wanted, "sm_90", tmp_path) == {}


@pytest.mark.slow
def test_states_move_in_whole_vectors(tmp_path: Path) -> None:
    """64 elements per thread: 16 loads and 16 stores of 16 bytes."""
    (step,) = steps_of("gdn", {}, 128, 128, tmp_path)
    text = compile_for(job(step.program, step.schedule, "sm_90"), tmp_path).text
    assert text.count("ld.global.v4.b32") == 16 and text.count("st.global.v4.b32") == 16
