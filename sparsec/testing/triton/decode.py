"""Decode steps under Triton's interpreter: ``python -m sparsec.testing.triton.decode FOLDER DTYPE NAME…``.

Needs TRITON_INTERPRET=1 in the environment. Prints one JSON object: per small variant, the largest difference between
printed kernels and the tile interpreter, under the schedules of a GPU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from sparsec.ir.variant import dim_names
from sparsec.lower.lowered import Step
from sparsec.lower.registry import default
from sparsec.plan.plan import Kernel
from sparsec.runtime import launch
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.decode import appends
from sparsec.runtime.decode import kernels as decode_kernels
from sparsec.runtime.inputs import inputs
from sparsec.runtime.target import Target
from sparsec.testing.inputs.variants import small
from sparsec.testing.triton.pace import keep_pace
from sparsec.tile.schedule import Schedule

SIZES = {"B": 2, "H": 4, "HKV": 2, "D": 16, "DV": 16, "DR": 16}
STEPS = (34, 1, 5, 18, 1)


def gpu_schedule(kernel: Kernel, dims: object) -> Schedule:
    """What an H100 would run, on operands that an interpreter multiplies exactly."""
    return replace(default(kernel.spec, "triton:sm_90"), descriptors=False, precision="ieee")


def printed(step: Step, target: Target, folder: Path) -> launch.Bind:
    """A program as the Triton that is printed for it."""
    return launch._Triton(step, folder)


def decoded(name: str, dtype: str, deterministic: bool, folder: Path) -> list[torch.Tensor]:
    """The first output of every step."""
    made = compile(small(name), "interpreter", folder)
    dims = {n: s for n, s in SIZES.items() if n in dim_names(made.variant)}
    given = inputs(made.variant, dtype=dtype, device="cpu", seed=0, T=sum(STEPS), **dims)
    with patch.object(Compiled, "schedule", staticmethod(gpu_schedule)):
        return _steps(made, given, deterministic)


def _steps(made: Compiled, given: dict[str, torch.Tensor], deterministic: bool) -> list[torch.Tensor]:
    cache = made.init_cache(2, 96, page=16, step=8, deterministic=deterministic)
    spec, found, start = made.decoder.spec, [], 0
    units = {**dict.fromkeys(spec.fresh, 1), **{k.name: k.unit for k in spec.kept}}
    for count in STEPS:
        ends = {n: (start // u, (start + count) // u) for n, u in units.items()}
        step: dict[str, Any] = {n: x[:, slice(*ends[n])] if n in ends else x for n, x in given.items()}
        out = made.decode(cache, **step)
        found.append(out if isinstance(out, torch.Tensor) else out[0])
        start += count
    return found


def difference(name: str, dtype: str, folder: Path) -> float:
    """The largest over both kinds of schedules."""
    worst = 0.0
    for deterministic in (True, False):
        plain = decoded(name, dtype, deterministic, folder)
        with patch.object(decode_kernels, "build", printed), patch.object(appends, "build", printed):
            found = decoded(name, dtype, deterministic, folder)
        both = [(a.float() - b.float()).abs().max().item() for a, b in zip(plain, found, strict=True)]
        worst = max(worst, *both)
    return worst


def main(words: Sequence[str]) -> None:
    """Every variant named."""
    keep_pace()
    folder, dtype, *names = words
    print(json.dumps({name: difference(name, dtype, Path(folder)) for name in names}))


if __name__ == "__main__":
    main(sys.argv[1:])
