"""Banks of which tokens choose parts: outputs, last states and gradients are the oracle's on every back end."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

import sparsec
from sparsec.frontends.text import parse
from sparsec.lower.route import router
from sparsec.passes.differentiate import differentiate
from sparsec.plan.plan import Kernel, PlanError
from sparsec.plan.states.route_specs import Router
from sparsec.plan.states.scan_specs import Scan, ScanGrad
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.kernel import BuiltKernel
from sparsec.runtime.target import INTERPRETER
from sparsec.testing.inputs.recurrent import ROUTES, draw
from sparsec.testing.whole.chain import links, poisoned
from sparsec.testing.whole.trained import wrong_on
from sparsec.tile.interpreter import interpret
from sparsec.tile.schedule import Schedule, ScheduleError

SIZES = {"B": 2, "T": 23, "H": 4, "HKV": 2, "D": 16, "DV": 24, "DX": 72}


@cache
def on(name: str, target: str) -> Compiled:
    return compile(parse(ROUTES[name]), target=target)


@pytest.mark.parametrize("target", ["interpreter", "tvm:llvm"])
@pytest.mark.parametrize("name", ROUTES)
def test_outputs_and_gradients(name: str, target: str) -> None:
    assert wrong_on(on(name, target), draw(on(name, target).variant, SIZES), "float32") == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["two of four", "lists per head", "a slot of two"])
def test_half_precision(name: str, dtype: str) -> None:
    x = draw(on(name, "interpreter").variant, SIZES, getattr(torch, dtype))
    assert wrong_on(on(name, "interpreter"), x, dtype) == []


@pytest.mark.parametrize("sizes", [{"T": 1}, {"T": 300, "B": 1, "H": 2}], ids=str)
def test_lengths(sizes: dict[str, int]) -> None:
    assert (
        wrong_on(on("two of four", "tvm:llvm"), draw(on("two of four", "tvm:llvm").variant, SIZES | sizes), "float32")
        == []
    )


SSE: dict[str, tuple[str, dict[str, object]]] = {
    "with its loss": ("sse", {"balance": 0.1}),
    "two parts, with its loss": ("sse_gdn", {"k": 2, "balance": 0.1}),
    "first and last states": ("sse", {"raw": True, "initial": True, "final": True, "k": 2}),
    "gated delta, first and last states": ("sse_gdn", {"raw": True, "initial": True, "final": True}),
    "as released": ("sse_gdn", {"literal": True, "balance": 0.1}),
}


@pytest.mark.parametrize("which", SSE)
def test_sparse_state_expansion(which: str) -> None:
    name, knobs = SSE[which]
    made = sparsec.preset(name, **knobs)
    x = sparsec.inputs(made, B=2, T=19, H=2, HKV=1, D=16, DV=8, DX=80)
    assert wrong_on(compile(made, target="interpreter"), x, "float32") == []


def joint(name: str) -> tuple[Compiled, list[Kernel]]:
    made = compile(differentiate(parse(ROUTES[name])).variant, target="interpreter")
    dims, dtype = made.bind(draw(made.variant, SIZES), None)
    return made, list(made.plan(dims, dtype).kernels)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["two of four", "lists per head", "erasing parts", "slots apart"])
def test_walking_over_runs_or_over_all_tokens_is_the_same(name: str, dtype: str, tmp_path: Path) -> None:
    """To the last bit, whatever the other choices."""
    made, _ = joint(name)
    x = draw(made.variant, SIZES, getattr(torch, dtype))
    dims, _ = made.bind(x, None)
    plan = made.plan(dims, dtype)
    runs = [poisoned(plan, x, dims) for _ in range(2)]
    for kernel in plan.kernels:
        for order, buffers in zip(("token", "mask"), runs, strict=True):
            schedule = Schedule(order=order, value_block=16, block=8, rows=2)
            own = (
                BuiltKernel(kernel, schedule, INTERPRETER, tmp_path)
                if isinstance(kernel.spec, Scan | ScanGrad)
                else made.built(kernel, dims)
            )
            own.run(buffers, dims)
    for buffer in plan.buffers:
        torch.testing.assert_close(runs[0][buffer.name], runs[1][buffer.name], rtol=0, atol=0, msg=buffer.name)


EXACT = 1e-5
KEYED = 1e-3
"""Decays per key channel multiply in tf32."""


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize(
    "name", ["routed", "two of four", "erasing parts", "a tree", "delta from given states", "a slot of two"]
)
def test_chunks_of_sorted_tokens_agree_with_the_recurrence(name: str, splits: int, tmp_path: Path) -> None:
    made, sizes = joint(name)[0], SIZES | {"T": 75, "H": 2}
    x = draw(made.variant, sizes)
    dims, dtype = made.bind(x, None)
    plan = made.plan(dims, dtype)
    runs = [poisoned(plan, x, dims) for _ in range(2)]
    schedules = (
        Schedule(order="token", value_block=32, block=16, rows=1),
        Schedule(order="chunk", rows=16, value_block=16, splits=splits),
    )
    for kernel in plan.kernels:
        for schedule, buffers in zip(schedules, runs, strict=True):
            scans = isinstance(kernel.spec, Scan | ScanGrad)
            own = BuiltKernel(kernel, schedule, INTERPRETER, tmp_path) if scans else made.built(kernel, dims)
            own.run(buffers, dims)
    bound = KEYED if name in ("two of four", "erasing parts") else EXACT
    for buffer in (b for b in plan.buffers if b.role != "input"):
        mine, right = (run[buffer.name].double() for run in reversed(runs))
        assert float((mine - right).norm()) <= bound * float(right.norm()), buffer.name


def test_the_tuner_may_choose_how_parts_are_walked() -> None:
    from sparsec.lower.registry import space

    by_name = {name: next(k.spec for k in joint(name)[1] if isinstance(k.spec, Scan)) for name in ROUTES}
    assert space(by_name["two of four"], "tvm:llvm")["order"] == ("token", "mask")
    assert "order" not in space(by_name["parts that decay at rest"], "tvm:llvm")
    half = sparsec.compile(sparsec.preset("sse_gdn", raw=True, parts=32), target="interpreter").plan(
        {"B": 1, "T": 64, "H": 2, "HKV": 2, "D": 128, "DV": 128, "DX": 64}, "bfloat16"
    )
    routed = next(k.spec for k in half.kernels if isinstance(k.spec, Scan) and k.spec.writes.route is not None)
    assert space(routed, "triton:sm_90")["order"] == ("chunk", "token")


def test_orders_that_say_nothing_are_refused() -> None:
    from sparsec.lower.registry import lower_kernel

    for name, order, said in (
        ("parts that decay at rest", "token", "decay with every token"),
        ("parts that decay at rest", "chunk", "decay with every token"),
    ):
        scan = next(k.spec for k in joint(name)[1] if isinstance(k.spec, Scan))
        with pytest.raises(ScheduleError, match=said):
            lower_kernel(scan, Schedule(order=order))


REFUSED = {
    "all parts": (
        ROUTES["routed"].replace("{renormalise = false}", "{renormalise = false, read = all}"),
        "have no weight",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_kernel_yet_is_refused(what: str) -> None:
    text, said = REFUSED[what]
    with pytest.raises(PlanError, match=said):
        compile(parse(text), target="interpreter").plan(SIZES, "float32")


@pytest.mark.parametrize(("parts", "dim", "slots"), [(4, 40, 1), (32, 700, 2), (3, 512, 1)])
def test_a_router_of_few_tokens_chooses_alike(parts: int, dim: int, slots: int) -> None:
    spec = Router("r", "x", "w", "ids", "shares", "e", parts, dim, slots, 0.7, "bfloat16", "bfloat16")
    random = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*s, generator=random).bfloat16() for s in ((3, 2, 1, dim), (parts, 1, dim)))
    found = []
    for schedule in (Schedule(rows=16), router.few(spec, Schedule(), "triton:sm_90")):
        made = {"ids": torch.zeros(3, 2, 1, slots, dtype=torch.int32), "shares": torch.zeros(3, 2, 1, parts)}
        made["e"] = torch.zeros(3, 2, 1, slots)
        interpret(
            router.lower(spec, schedule), {"x": x, "w": w, **made}, {"B": 3, "N": 2, "TQ": 2, "TK": 2, "q_offset": 0}
        )
        found.append(made)
    assert torch.equal(found[0]["ids"], found[1]["ids"])
    for name in ("shares", "e"):
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-5, atol=1e-6)


MISTAKES = {
    "e left out": lambda w: replace(w, route=replace(w.route, weight=None)),
    "parts decay at rest": lambda w: replace(w, route=replace(w.route, freeze=False)),
    "one slot only": lambda w: replace(w, route=replace(w.route, slots=1)),
    "no first states": lambda w: replace(w, initial=None),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_kernel_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, found = joint("two of four")
    specs = {}
    for kernel in found:
        spec = kernel.spec
        if isinstance(spec, Scan | ScanGrad):
            own = spec if isinstance(spec, Scan) else spec.forward
            broken = replace(own, writes=MISTAKES[mistake](own.writes))
            wrong = broken if isinstance(spec, Scan) else replace(spec, forward=broken)
            specs[kernel.name] = replace(kernel, spec=wrong)
    built = made.built
    monkeypatch.setattr(type(made), "built", lambda self, kernel, dims: built(specs.get(kernel.name) or kernel, dims))
    said = [link.ok for link in links(made, draw(made.variant, SIZES)) if link.lower in specs]
    assert said and not any(said)
