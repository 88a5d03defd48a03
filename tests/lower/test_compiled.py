"""Default schedules of the data-dependent kernels, compiled for an H100 without one: no spills, tensor cores used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sparsec.backends.triton.compile import Compiled, CompileError, compile_all
from sparsec.plan.specs import Combine, GatheredAttention, Pool, Selector, Spec, Summarise
from sparsec.scalar.expr import var
from sparsec.testing.triton.ahead import jobs

ROW, KEY, CHUNK = var("i"), var("j"), var("c")

NSA = GatheredAttention(
    "nsa", "q", "k", "v", "ids", None, "out", "lse", "kv_head", 16, 64, 64, 4, 128, 128, 128**-0.5, "bfloat16",
    where=KEY <= ROW,
)  # fmt: skip
HSA = replace(
    NSA,
    name="hsa",
    weights="w",
    lse=None,
    slots=8,
    heads=16,
    kv_heads=1,
    head_dim=64,
    value_dim=64,
    per="chunk",
    where=None,
)
MOBA = replace(NSA, name="moba", scope="head", slots=3, chunk=512, heads=16, kv_heads=16)
SELECT = Selector(
    "select", "q", "keys", "ids", None, 64, 4, 128, "N", "NB", 128**-0.5, 16, 16, "bfloat16", softmax=True, group="sum",
    visible=64 * (CHUNK + 1) - 1 <= ROW, eligible=CHUNK * 64 <= ROW,
    forced=(CHUNK < 1) | ((CHUNK <= ROW // 64) & (ROW // 64 - 1 <= CHUNK)),
)  # fmt: skip
POOLED = replace(SELECT, name="pooled", visible=16 * CHUNK + 31 <= ROW, pool=Pool("overlap", 32, 16, 64))
STICK = replace(
    SELECT, name="stick", softmax=False, group=None, heads=1, kv_heads=1, dim=64, k=8, slots=8, forced=None,
    order="newest", weights="stick", weights_out="w", eligible=(CHUNK + 1) * 64 <= ROW,
)  # fmt: skip
SPECS: dict[str, Spec] = {
    "nsa": NSA,
    "hsa": HSA,
    "hsa of three heads": replace(HSA, name="three", heads=6, kv_heads=2),
    "moba": MOBA,
    "select": SELECT,
    "pooled": POOLED,
    "stick": STICK,
    "mean": Summarise("mean", "x", "out", 4, 128, 64, 64, "N", "mean", "bfloat16", "bfloat16"),
    "merge": Combine("merge", "lse", ("a", "b"), (), ("la", "lb"), "out", "lse", 16, 128, "bfloat16"),
}
DENSE = ("nsa", "hsa", "hsa of three heads", "moba")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Compiled | CompileError]]:
    """Every program of every spec, compiled in one process."""
    wanted = {name: [job for _, job in jobs(spec, "sm_90")] for name, spec in SPECS.items()}
    made = iter(
        compile_all([job for found in wanted.values() for job in found], Path(tmp_path_factory.mktemp("compiled")))
    )
    return {name: [next(made) for _ in found] for name, found in wanted.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_defaults_fit_without_spills(name: str, compiled: dict[str, list[Compiled | CompileError]]) -> None:
    for program in compiled[name]:
        assert isinstance(program, Compiled), program
        assert program.resources.spills == 0
        assert program.resources.shared <= 227 * 1024
    if name in DENSE:
        assert any(isinstance(p, Compiled) and p.resources.wgmma for p in compiled[name])
