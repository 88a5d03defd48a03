"""Ahead-of-time compilation without a GPU: tensor cores used, no spills, every architecture, failures reported."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from sparsec.backends.triton.arguments import signature
from sparsec.backends.triton.box import Box
from sparsec.backends.triton.compile import Compiled, CompileError, Job, compile_all
from sparsec.backends.triton.emit import emit
from sparsec.backends.triton.packed import packed
from sparsec.testing.tile.attention import window_program
from sparsec.testing.tile.selection import top
from sparsec.tile.language import Program
from sparsec.tile.schedule import Schedule

WIDE = window_program(128, 1024, 128, 64, 2, "bfloat16")
# Folders with other versions of Triton, to be put first on PYTHONPATH.
OTHERS = [p for p in os.environ.get("SPARSEC_TEST_TRITONS", "").split(os.pathsep) if p]


def job(program: Program, schedule: Schedule, target: str = "sm_90") -> Job:
    """A job for a program."""
    source = emit(program, schedule)
    return Job(source, program.name, signature(program, schedule), target, schedule.warps, schedule.stages)


JOBS: dict[str, Job] = {
    "pointers sm_90": job(WIDE, Schedule(warps=8)),
    "descriptors sm_90": job(WIDE, Schedule(warps=8, descriptors=True)),
    "pointers sm_80": job(window_program(64, 1024, 64, 64, 2, "float16"), Schedule(), "sm_80"),
    "descriptors sm_100": job(window_program(64, 1024, 64, 64, 2, "bfloat16"), Schedule(descriptors=True), "sm_100"),
    "pointers gfx942": job(window_program(64, 1024, 64, 32, 2, "bfloat16"), Schedule(stages=1), "gfx942"),
    **{f"top {k}": job(top(slots=k, block=64, rows=64, dtype="bfloat16").program, Schedule()) for k in (1, 8, 16, 64)},
    "broken": Job("import triton\n\n\n@triton.jit\ndef f(x):\n    y = z\n", "f", {"x": "*fp32"}, "sm_90", 4, 1),
}
SHARED = {"sm_80": 163, "sm_90": 227, "sm_100": 227, "gfx942": 64}

Results = dict[str, Compiled | CompileError]


@pytest.fixture(scope="module", params=[None, *OTHERS])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Every job compiled in one process."""
    folder: Path = tmp_path_factory.mktemp("compiled")
    return dict(zip(JOBS, compile_all(list(JOBS.values()), folder, python_path=request.param), strict=True))


def compiled(results: Results, name: str) -> Compiled:
    """A result that is no failure."""
    found = results[name]
    assert isinstance(found, Compiled), found
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in JOBS if name != "broken"])
def test_kernels_fit_without_spills(name: str, results: Results) -> None:
    needs = compiled(results, name).resources
    assert needs.spills == 0
    assert needs.registers > 0
    assert needs.shared <= SHARED[JOBS[name].target] * 1024


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pointers sm_90", "descriptors sm_90"])
def test_hopper_uses_warp_group_products(name: str, results: Results) -> None:
    found = compiled(results, name)
    assert found.resources.wgmma
    assert ("cp.async.bulk.tensor" in found.text) == name.startswith("descriptors")


def packed_sizes(name: str) -> tuple[int, ...]:
    """The sizes of the arguments that a repeated launch of a job's kernel would pass."""
    kinds = {k: v.removesuffix(":16") for k, v in JOBS[name].signature.items()}
    shapes = [[1] * kind.count(",") + [64] for kind in kinds.values() if kind.startswith("tensordesc")]
    boxes = [Box(0, TensorDescriptor(torch.zeros(s), s, [64] * (len(s) - 1) + [1], s)) for s in shapes]
    simple = {"launch_cooperative_grid": False, "launch_pdl": False, "num_ctas": 1, "num_warps": 4, "shared": 0}
    metadata = SimpleNamespace(
        **simple, global_scratch_size=0, profile_scratch_size=0, tensordesc_meta=[{"swizzle": 1}] * len(boxes)
    )
    compiled = SimpleNamespace(function=1, src=SimpleNamespace(signature=kinds), metadata=metadata)
    numbers = [1 for kind in kinds.values() if kind[0] != "*" and not kind.startswith("tensordesc")]
    found = packed(compiled, (1,), numbers, boxes)
    assert found is not None
    return found.sizes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pointers sm_90", "descriptors sm_90", "descriptors sm_100", "top 8"])
def test_repeated_launches_pass_the_arguments_that_the_assembly_takes(name: str, results: Results) -> None:
    entry = re.search(r"\.entry\s+\w+\((.*?)\)", compiled(results, name).text, re.DOTALL)
    assert entry is not None
    taken = re.findall(r"\.param\s+(?:\.align\s+\d+\s+)?\.([a-z]+)(\d+)[^,\[]*(?:\[(\d+)\])?", entry[1])
    assert tuple(int(bits) // 8 * int(count or 1) for _, bits, count in taken) == packed_sizes(name)


@pytest.mark.slow
def test_a_kernel_that_does_not_compile_is_a_result_with_its_reason(results: Results) -> None:
    found = results["broken"]
    assert isinstance(found, CompileError) and "z is not defined" in str(found)
