"""What runs without a tuner on Hopper prints, for every preset, every way to give lists, and their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sparsec.backends.triton.emit import emit
from sparsec.frontends.preset import NAMES, preset
from sparsec.ir.variant import Variant, dim_names
from sparsec.lower.registry import default, known, lower_kernel
from sparsec.plan.grad_specs import AnySpec
from sparsec.runtime.compiled import Compiled, compile
from sparsec.testing.triton.ahead import job, misfits
from sparsec.tile.schedule import Schedule

TARGET = "triton:sm_90"
SIZES = {"B": 1, "TQ": 1920, "TK": 1920, "T": 1920, "H": 8, "HKV": 2, "TM": 64, "N": 64}
KNOBS: dict[str, dict[str, Any]] = {
    f"given lists per {queries} queries, blocks of {keys}": {
        "selection": "given", "branches": "slc", "block": keys, **({"query_block": queries} if queries else {})
    }
    for queries in (0, 128, 256)
    for keys in (64, 80, 128, 192)
}  # fmt: skip
LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    **{n: (n, {}) for n in NAMES},
    **{n: ("nsa", k) for n, k in KNOBS.items()},
}


def plans(variant: Variant, dim: int, folder: Path) -> Iterator[AnySpec]:
    """The kernels of a call, and those of a training step where there is one."""
    made = compile(variant, TARGET, folder)
    dims = {n: SIZES.get(n, dim) for n in dim_names(variant)}
    yield from (k.spec for k in made.plan(dims, "bfloat16").kernels)
    yield from (k.spec for k in joint(made, dims))


def joint(made: Compiled, dims: dict[str, int]) -> tuple[Any, ...]:
    """The kernels of forward and backward for all inputs in half precision."""
    wrt = [n for n, s in made.variant.inputs.items() if not s.dtype.startswith("int")]
    split = made.training.halves(dims, "bfloat16", wrt).split
    return (*split.forward.kernels, *split.backward.kernels)


def offered(spec: AnySpec) -> list[Schedule]:
    """The default, and what the tuner tries right after it."""
    return [default(spec, TARGET), *known(spec, TARGET)]


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("name", LAYERS)
def test_defaults_print(name: str, dim: int, tmp_path: Path) -> None:
    design, knobs = LAYERS[name]
    seen = 0
    for spec in plans(preset(design, **knobs), dim, tmp_path):
        for schedule in offered(spec):
            for step in lower_kernel(spec, schedule).steps:
                assert step.program.name in emit(step.program, step.schedule)
                seen += 1
    assert seen


@pytest.mark.slow
@pytest.mark.parametrize(("queries", "keys"), [(0, 80), (128, 192), (256, 64)])
def test_defaults_of_given_lists_compile(queries: int, keys: int, tmp_path: Path) -> None:
    """Without spills, in shared memory."""
    design, knobs = LAYERS[f"given lists per {queries} queries, blocks of {keys}"]
    made = compile(preset(design, **knobs), TARGET, tmp_path)
    kernels = made.plan({n: SIZES.get(n, 128) for n in dim_names(made.variant)}, "bfloat16").kernels
    steps = [s for k in kernels for s in lower_kernel(k.spec, default(k.spec, TARGET)).steps]
    jobs = [(s.program.name, False, job(s.program, s.schedule, "sm_90")) for s in steps]
    assert misfits(jobs, "sm_90", tmp_path) == {}
