"""Mixtures of masses that nothing else reads: scores leave the scans, and are those of the masses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.autotune.truth import Truth
from sparsec.autotune.verdict import unjudged, wrong
from sparsec.ir.variant import Variant
from sparsec.lower.registry import default, lower_kernel
from sparsec.oracle import check, oracle
from sparsec.passes.pipeline import training
from sparsec.plan.plan import Plan
from sparsec.plan.states.mixture_specs import Mixture, MixtureGrad, StateMixture, StateMixtureGrad
from sparsec.plan.states.scan_specs import Scan, ScanGrad
from sparsec.plan.states.scored import scored
from sparsec.runtime import across
from sparsec.runtime.across import programs
from sparsec.runtime.compiled import Compiled
from sparsec.runtime.kernel import BuiltKernel
from sparsec.runtime.target import INTERPRETER
from sparsec.testing.whole.chain import poisoned
from sparsec.tile.regions import regions
from sparsec.tile.schedule import Schedule

SIZES: dict[str, Any] = {"B": 2, "T": 70, "H": 2, "HKV": 1, "D": 16, "DV": 16, "DX": 4}
LEVELS: dict[str, Any] = {"levels": 3, "parts": 2, "branching": 2, "raw": True, "clip": 0.0}
CHUNKS = Schedule(order="chunk", rows=16, value_block=16, splits=2, keep=True)
JOINED = (StateMixture, StateMixtureGrad)


def given(variant: Variant, sizes: dict[str, Any]) -> dict[str, Tensor]:
    """Inputs in bf16, queries and keys unit vectors."""
    x = sparsec.inputs(variant, dtype="bfloat16", **sizes)
    return x | {n: torch.nn.functional.normalize(x[n].float(), dim=-1).bfloat16() for n in ("q", "k")}


def everywhere(scan: Scan) -> bool:
    return True


def joint_of(variant: Variant, x: dict[str, Tensor]) -> tuple[Compiled, dict[str, Tensor], Plan]:
    """Outputs and gradients as one variant, its inputs, and its plan with scores in place of masses."""
    joint = training(variant)
    made, out = sparsec.compile(joint.variant, target="interpreter"), oracle(variant, x, form="vector")
    assert isinstance(out, Tensor)
    grad, (name,) = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)), joint.cotangents.values()
    x = x | {name: grad if joint.variant.inputs[name].dtype == "float32" else grad.bfloat16()}
    return made, x, scored(made.plan(*made.bind(x)), everywhere)


def held_to_its_nodes(made: Compiled, x: dict[str, Tensor], plan: Plan, folder: Path) -> dict[str, Tensor]:
    """All buffers; each kernel without masses does what its nodes mean, of what it read."""
    dims, _ = made.bind(x)
    buffers, seen = poisoned(plan, x, dims), list[type]()
    for kernel in plan.kernels:
        if not isinstance(kernel.spec, JOINED):
            made.built(kernel, dims).run(buffers, dims)
            continue
        BuiltKernel(kernel, replace(default(kernel.spec, "triton"), rows=16), INTERPRETER, folder).run(buffers, dims)
        assert not unjudged(kernel) and wrong(Truth(kernel, buffers, dims, None), buffers) is None
        seen.append(type(kernel.spec))
    assert seen == [StateMixture, StateMixtureGrad]
    return buffers


@pytest.mark.parametrize(
    ("knobs", "sizes"),
    [
        ({}, {}),
        ({"top": 2}, {"HKV": 2, "T": 50}),
        ({"levels": 2, "rule": "additive"}, {"D": 24, "B": 1}),
        ({"levels": 1}, {"B": 1, "T": 1100, "H": 1}),
        ({"levels": 2}, {"H": 4, "T": 50}),
    ],
    ids=["three levels", "the best two", "padded dims", "chunks in several rounds", "many queries per mass"],
)
def test_scores_are_those_of_the_masses(knobs: dict[str, Any], sizes: dict[str, Any], tmp_path: Path) -> None:
    """Outputs and gradients are the oracle's, and each kernel's part of them."""
    variant = sparsec.preset("rsa", **LEVELS | knobs)
    sizes = {n: s for n, s in (SIZES | sizes).items() if n != "DX" or "x" in variant.inputs}
    made, x, plan = joint_of(variant, given(variant, sizes))
    buffers = held_to_its_nodes(made, x, plan, tmp_path)
    for name, right in zip(plan.outputs, oracle(made.variant, x, form="vector"), strict=True):
        verdict = check(buffers[name], right, "bfloat16", "grad" if name.startswith("grad") else "o")
        assert verdict, f"{name}: {verdict.sentence}"


def test_many_queries_per_mass_are_gone_through_in_a_loop() -> None:
    """Written out, sixteen of them spilled 8 KB of a thread on Hopper: a program is as long for sixteen as for four."""
    lengths = list[dict[str, int]]()
    for heads in (4, 16):
        made = sparsec.compile(sparsec.preset("rsa", **LEVELS), target="triton:sm_90")
        dims = {"H": heads, "HKV": 1, "D": 128, "DV": 128, "DX": 16}
        plan = made.training.joint(dims, "bfloat16", ("q", "k")).split.backward
        (kernel,) = [k for k in plan.kernels if isinstance(k.spec, StateMixtureGrad)]
        steps = lower_kernel(kernel.spec, default(kernel.spec, "triton:sm_90")).steps
        lengths.append({s.program.name: sum(map(len, regions(s.program).nodes.values())) for s in steps})
    kinds = {name: n for name, n in lengths[0].items() if name.endswith(("asked", "written"))}
    assert len(kinds) >= 4 and all(lengths[1][name] == n for name, n in kinds.items())


def test_biases_of_an_odd_number_of_heads(tmp_path: Path) -> None:
    """Of a scan that does not fade and one that does, heads whose squares are no numbers of fp32."""
    head = "q: [B,T,H,D], k: [B,T,H,D], g: [B,T,H] float32, b: [B,T,H,2] float32"
    body = "z = mass(k, decay=g)\n  y = mass(k)\n  return mixture(q, z, y, bias=b)"
    variant = sparsec.parse(f"variant biased({head}) {{\n  {body}\n}}")
    x = given(variant, {"B": 2, "T": 45, "H": 3, "D": 16})
    made, x, plan = joint_of(variant, x | {"k": x["k"] * torch.tensor([1e-25, 1.0, 1e25]).bfloat16()[:, None]})
    held_to_its_nodes(made, x, plan, tmp_path)


def test_masses_that_are_nothing_yet(tmp_path: Path) -> None:
    """Their neighbours in a chunk are far from 1, and what is far below those counts as it should."""
    variant = sparsec.parse(f"variant late({HEAD}) {{\n  {MASS}  return mixture(q, z, y)\n}}")
    x = given(variant, {"B": 1, "T": 40, "H": 2, "D": 16})
    x["k"] = x["k"] * torch.tensor([1e-22, 1e22]).bfloat16()[:, None]
    x["k"][:, :5], x["k"][:, 20:23] = 0, 0
    made, x, plan = joint_of(variant, x)
    held_to_its_nodes(made, x, plan, tmp_path)


def test_queries_alone_are_asked_for(tmp_path: Path) -> None:
    """Nothing is handed from chunk to chunk where no key has a gradient."""
    variant = sparsec.preset("rsa", **LEVELS)
    joint, x = training(variant, ("q",)), given(variant, SIZES)
    made, (name,) = sparsec.compile(joint.variant, target="interpreter"), joint.cotangents.values()
    grad = torch.randn(2, 70, 2, 16, generator=torch.Generator().manual_seed(2)).bfloat16()
    x |= {name: grad if joint.variant.inputs[name].dtype != "float32" else grad.float()}
    plan = scored(made.plan(*made.bind(x)), everywhere)
    back = next(k.spec for k in plan.kernels if isinstance(k.spec, StateMixtureGrad))
    assert back.masses == (None, None, None)
    buffers = held_to_its_nodes(made, x, plan, tmp_path)
    verdict = check(buffers[plan.outputs[-1]], oracle(made.variant, x, form="vector")[-1], "bfloat16", "grad")
    assert verdict, verdict.sentence


def results(made: Compiled, x: dict[str, Tensor]) -> list[Tensor]:
    """The output with and without gradients, and all gradients."""
    leaves = {name: t.clone().requires_grad_() for name, t in x.items()}
    with torch.no_grad():
        plain = made(**x)
    out = made(**leaves)
    assert isinstance(out, Tensor) and isinstance(plain, Tensor)
    return [plain, out, *torch.autograd.grad(out.float().square().sum(), list(leaves.values()))]


def halves_of(made: Compiled, x: dict[str, Tensor]) -> list[Plan]:
    """Without gradients; forward and backward with all of them."""
    dims, dtype = made.bind(x)
    cut = made.training.joint(dims, dtype, tuple(x)).split
    return [made.plan(dims, dtype), cut.forward, cut.backward]


def test_levels_leave_work_to_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launch parameters of several levels in one kernel have names of their own, and sorts are still done once."""
    found, steps = [], []
    for apart in ("1", "0"):
        made, x = closer(monkeypatch, apart)
        dims, _ = made.bind(x)
        steps.append([[s for p in programs(made, h, dims)[1].values() for s in p.steps] for h in halves_of(made, x)])
        found.append(results(made, x))
    names = [[s.program.name for s in half] for half in steps[1]]
    assert all(len(a) - len(b) >= 14 for a, b in zip(*steps, strict=True))
    for half in names:
        assert sum(n.endswith("_tally") for n in half) == 2 and sum(n.endswith("_sums") for n in half) == 3
    for alone, together in zip(*found, strict=True):
        torch.testing.assert_close(together, alone, rtol=0, atol=0)
    before = made.builds
    results(made, {**x, **given(made.variant, SIZES | {"B": 1, "HKV": 2, "T": 133})})
    assert made.builds == before


def closer(monkeypatch: pytest.MonkeyPatch, apart: str = "0") -> tuple[Compiled, dict[str, Tensor]]:
    """A variant of three levels whose scans go chunk by chunk, without masses."""
    monkeypatch.setattr(across, "_in_chunks", lambda scan, target: True)
    monkeypatch.setenv("SPARSEC_WORK_APART", apart)
    made = sparsec.compile(sparsec.preset("rsa", **LEVELS), target="interpreter")
    x = given(made.variant, SIZES | {"B": 1, "HKV": 2})
    scans = [k.name for p in halves_of(made, x) for k in p.kernels if isinstance(k.spec, (Scan, ScanGrad, *JOINED))]
    made.schedules = dict.fromkeys(scans, CHUNKS)
    return made, x


def test_a_backward_reads_what_its_forward_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sorted or solved twice, and no row is put back that others can read where it is."""
    made, x = closer(monkeypatch)
    dims, dtype = made.bind(x)
    cut = made.training.halves(dims, dtype, tuple(x)).split
    steps = [
        [s.program.name for p in programs(made, h, dims)[1].values() for s in p.steps]
        for h in (cut.forward, cut.backward)
    ]
    for ending in ("tally", "solve", "ends", "leaves", "sorted_v"):
        once = [n for n in steps[0] if n.endswith(f"_{ending}")]
        again = [n for n in steps[1] if n.endswith(f"_{ending}") and not n.endswith("grad_ends")]
        assert once and not again, (ending, once, again)
    assert not any(
        "_put_" in n or n.endswith(("sorted_k", "sorted_q0", "sorted_query")) for n in (*steps[0], *steps[1])
    )
    there = {b.name for b in cut.backward.buffers if b.role == "input"}
    assert there <= {*cut.forward.outputs, *x, *(n for n in there if n.startswith("grad"))}


def test_a_backward_goes_with_its_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever schedules there are by then; and who traces a call sees what no schedule changes."""
    made, x = closer(monkeypatch)
    expected = results(made, x)[1:]
    leaves = {name: t.clone().requires_grad_() for name, t in x.items()}
    out = made(**leaves)
    assert isinstance(out, Tensor)
    made.schedules = {name: replace(s, rows=32) for name, s in made.schedules.items()}
    found = [out, *torch.autograd.grad(out.float().square().sum(), list(leaves.values()))]
    for actual, right in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, right, rtol=0, atol=0)
    forward, _ = made.training.operators
    dims, dtype = made.bind(x)
    halves = made.training.joint(dims, dtype, tuple(x))
    shapes = [halves.split.forward.buffer(n).size(dims) for n in dict.fromkeys(halves.split.forward.outputs)]
    assert [tuple(t.shape) for t in forward([*x.values()], None, ",".join(x))] == shapes


def specs(plan: Plan) -> set[type]:
    return {type(k.spec) for k in plan.kernels}


def test_which_calls_have_scores() -> None:
    """Dense ones in half precision on a GPU; packed ones keep their scans, and so does a CPU."""
    sizes = {"B": 1, "T": 256, "H": 2, "HKV": 2, "D": 128, "DV": 128, "DX": 16}
    for target, dtype, joined in (
        ("triton:sm_90", "bfloat16", True),
        ("triton:sm_90", "float32", False),
        ("cpu", "bfloat16", False),
    ):
        made = sparsec.compile(sparsec.preset("rsa", **LEVELS), target=target)
        plain, cut = made.plan(sizes, dtype), made.training.joint(sizes, dtype, tuple(made.variant.inputs)).split
        halves = [plain, cut.forward, cut.backward]
        assert [StateMixture in specs(p) for p in halves] == [joined, joined, False]
        assert [StateMixtureGrad in specs(p) for p in halves] == [False, False, joined]
        assert any("mass" in b.name for b in cut.forward.buffers) is not joined
        packed = made.training.joint(sizes, dtype, tuple(made.variant.inputs), packed=True).split
        kinds = specs(made.plan(sizes, dtype, packed=True)) | specs(packed.forward) | specs(packed.backward)
        assert Mixture in kinds and MixtureGrad in kinds and not kinds & {*JOINED}


HEAD = "q: [B,T,H,D], k: [B,T,H,D], g: [B,T,H] float32"
MASS = "z = mass(k, decay=g)\n  y = mass(k)\n"


@pytest.mark.parametrize(
    ("said", "joined"),
    [
        ("return mixture(q, z, y)", True),
        ("return mixture(q, z, y), z", False),
        ("return mixture(q, z, z)", False),
        ("return mixture(q, z, y), mixture(q, y)", False),
    ],
)
def test_masses_that_others_read_stay(said: str, joined: bool) -> None:
    variant = sparsec.parse(f"variant both({HEAD}) {{\n  {MASS}  {said}\n}}")
    made = sparsec.compile(variant, target="interpreter")
    x = sparsec.inputs(variant, dtype="bfloat16", B=1, T=40, H=2, D=16)
    plan = scored(made.plan(*made.bind(x)), everywhere)
    assert (StateMixture in specs(plan)) is joined
