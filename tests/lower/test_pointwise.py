"""Maps and their adjoints: the tile interpreter and the CPU against autograd in fp64, and compiled for an H100."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsec.backends.triton.compile import Compiled, compile_all
from sparsec.backends.tvm.build import compile
from sparsec.lower.registry import default, lower_kernel
from sparsec.plan.maps.map_specs import Map, MapGrad, MapSource, Shape, needed
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import Expr, var
from sparsec.scalar.functions import exp, log, maximum, sigmoid
from sparsec.testing.kernels.scratch import with_scratch
from sparsec.testing.triton.ahead import jobs
from sparsec.tile.schedule import Schedule, ScheduleError

Run = Callable[..., None]
PARAMS = {"B": 2, "N": 37, "TQ": 37, "TK": 37, "q_offset": 0}
X = [var(f"x{n}", "float") for n in range(3)]
WIDE: Shape = ("B", "N", 3, 12)
GATES: Shape = ("B", "N", 5)


def case(fn: Expr, *shapes: Shape, row: str = "none", shape: Shape = WIDE) -> Map:
    """A map of sources of these shapes."""
    sources = tuple(MapSource(f"s{n}", "float32", s, row) for n, s in enumerate(shapes))
    return Map("map", sources, "out", shape, "float32", fn)


def largest(fn: Expr, row: str) -> Map:
    """A row function of the five largest of a row."""
    return Map("map", (MapSource("s0", "float32", WIDE, row, top=5),), "out", WIDE, "float32", fn)


PULLED = -exp(X[0]) * maximum(X[1] + X[2], log(1.0 + exp(X[1] + X[2])))
CASES: dict[str, Map] = {
    "unit length": case(X[0], WIDE, row="l2norm"),
    "softmax": case(X[0] * 2.0, WIDE, row="softmax"),
    "odd width": case(X[0] * X[0], ("B", "N", 3, 7), row="l2norm", shape=("B", "N", 3, 7)),
    "gate": case(X[0] * X[1] * sigmoid(X[1]), WIDE, WIDE),
    "one tensor twice": replace(case(X[0] * X[1], WIDE, WIDE), sources=(MapSource("s0", "float32", WIDE),) * 2),
    "decays": case(PULLED, (5,), GATES, (5,), shape=GATES),
    "routing": case(X[0], GATES, row="softmax", shape=GATES),
    "scale of heads": case(X[0] * X[1], WIDE, (3, 1)),
    "scale of columns": case(X[0] * X[1] + X[2], WIDE, (12,), (3, 12)),
    "one number": case(X[0] * X[1], WIDE, (1,)),
    "shared by heads": case(X[0] * X[1], WIDE, ("B", "N", 1, 12)),
    "shared by tokens": case(X[0] * X[1] + X[2], WIDE, ("B", 1, 3, 12), (1, 1, 3, 1)),
    "shared by the batch": case(X[0] * X[1], WIDE, ("N", 3, 12)),
    "one number of each head": case(X[0] * X[1], WIDE, ("B", "N", 3, 1)),
    "rows of what is shared": case(X[0] * X[1] * X[2], WIDE, (3, 12), ("B", "N", 1, 12), row="softmax"),
    "rows of some": Map(
        "map",
        (
            MapSource("s0", "float32", WIDE, "l2norm"),
            MapSource("s1", "float32", (3, 1)),
            MapSource("s2", "float32", ("B", "N", 1, 12), "softmax"),
        ),
        "out",
        WIDE,
        "float32",
        X[0] * X[1] + X[2],
    ),
    "rows of one": case(X[0] * X[1], WIDE, (3, 1), row="l2norm"),
    "slots": case(X[0], ("N", 3, 12), row="l2norm", shape=("N", 3, 12)),
    "learned": case(X[0] * X[1], (3, 12), (12,), row="l2norm", shape=(3, 12)),
    "of a head": case(exp(X[0]), (5,), shape=(5,)),
    "largest few": largest(X[0] * 2.0, "softmax"),
    "which are the largest": largest(X[0], "chosen"),
    "infinite slope": case(log(X[0] * X[0]) * X[1], WIDE, (12,)),
}
ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "softmax": lambda x: torch.softmax(x, -1),
    "l2norm": lambda x: x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6),
}


def through(source: MapSource, x: Tensor) -> Tensor:
    """A row function by its definition; of equal elements the lower index is chosen."""
    if not source.top:
        return ROWS[source.row](x)
    first = x.detach().sort(dim=-1, descending=True, stable=True).indices[..., : source.top]
    chosen = torch.zeros_like(x, dtype=torch.bool).scatter(-1, first, True)
    return chosen.double() if source.row == "chosen" else torch.softmax(x.masked_fill(~chosen, -torch.inf), -1)


def size(shape: Shape) -> list[int]:
    """A concrete shape."""
    return [PARAMS[n] if isinstance(n, str) else n for n in shape]


def draw(spec: Map) -> dict[str, Tensor]:
    """Sources and a gradient in fp64."""
    g = torch.Generator().manual_seed(0)
    made = {s.name: torch.randn(size(s.shape), generator=g, dtype=torch.float64) for s in spec.sources}
    return made | {"grad": torch.randn(size(spec.shape), generator=g, dtype=torch.float64)}


def truth(spec: Map, x: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The result and the gradient of every source by their definition."""
    leaves = [x[s.name].clone().requires_grad_() for s in spec.sources]
    found = evaluate(spec.fn, {f"x{n}": through(spec.sources[n], leaf) for n, leaf in enumerate(leaves)})
    out = found.expand(size(spec.shape))
    total = (out * x["grad"]).sum() + sum(0.0 * leaf.sum() for leaf in leaves)
    return out.detach(), list(torch.autograd.grad(total, leaves))


def adjoint(spec: Map) -> MapGrad:
    """All gradients of a map."""
    return MapGrad("back", spec, "grad", "float32", tuple((f"grad_{n}", s.dtype) for n, s in enumerate(spec.sources)))


@pytest.mark.parametrize("split", [True, False], ids=["powers of two", "any width"])
@pytest.mark.parametrize("name", CASES)
def test_results(run: Run, name: str, split: bool) -> None:
    spec = CASES[name]
    x = draw(spec)
    x["out"] = torch.full(size(spec.shape), torch.nan, dtype=torch.float64)
    run(lower_kernel(spec, Schedule(rows=16, split_dims=split)), x, PARAMS, mode="exact")
    torch.testing.assert_close(x["out"], truth(spec, x)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rows,block", [(8, 16), (16, 16), (64, 64)])
@pytest.mark.parametrize("name", CASES)
def test_gradients(run: Run, name: str, rows: int, block: int) -> None:
    spec = CASES[name]
    x = draw(spec)
    _, want = truth(spec, x)
    x |= {f"grad_{n}": torch.full_like(t, torch.nan) for n, t in enumerate(want)}
    run(lower_kernel(adjoint(spec), Schedule(rows=rows, block=block)), x, PARAMS, mode="exact")
    for n, value in enumerate(want):
        torch.testing.assert_close(x[f"grad_{n}"], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["scale of columns", "decays", "rows of what is shared"])
def test_only_what_is_asked_for(run: Run, name: str) -> None:
    spec, x = CASES[name], draw(CASES[name])
    _, want = truth(spec, x)
    back = adjoint(spec)
    some = replace(back, grads=(None, *back.grads[1:]))
    lowered = lower_kernel(some, Schedule(rows=16, block=16))
    assert all("grad_0" not in [t.name for t in step.program.tensors] for step in lowered.steps)
    x |= {f"grad_{n}": torch.full_like(t, torch.nan) for n, t in enumerate(want) if n}
    run(lowered, x, PARAMS, mode="exact")
    for n in range(1, len(want)):
        torch.testing.assert_close(x[f"grad_{n}"], want[n], rtol=1e-9, atol=1e-9)


def test_equal_elements_are_chosen_by_the_lower_index(run: Run) -> None:
    spec = CASES["which are the largest"]
    x = {"s0": torch.ones(size(WIDE), dtype=torch.float64), "out": torch.zeros(size(WIDE), dtype=torch.float64)}
    run(lower_kernel(spec, Schedule(rows=16)), x, PARAMS, mode="exact")
    assert torch.equal(x["out"], (torch.arange(12) < 5).double().expand(size(WIDE)))


def test_an_adjoint_reads_no_source_that_it_does_not_need() -> None:
    back = adjoint(case(X[0] * X[1] + X[2], WIDE, WIDE, WIDE))
    assert [s.name for s in needed(back)] == ["s0", "s1"]
    assert [s.name for s in needed(replace(back, grads=(None, None, back.grads[2])))] == []
    assert [s.name for s in needed(replace(back, grads=(back.grads[0], None, None)))] == ["s1"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_happens_once(run: Run, name: str, dtype: str) -> None:
    half = getattr(torch, dtype)
    spec = replace(CASES[name], dtype=dtype, sources=tuple(replace(s, dtype=dtype) for s in CASES[name].sources))
    stored = {n: t.to(half) for n, t in draw(spec).items()}
    want, grads = truth(spec, {n: t.double() for n, t in stored.items()})
    back = replace(adjoint(spec), grad_dtype=dtype)
    given = stored | {"out": torch.full_like(want, torch.nan, dtype=half)}
    given |= {f"grad_{n}": torch.full_like(t, torch.nan, dtype=half) for n, t in enumerate(grads)}
    for kernel in (spec, back):
        run(lower_kernel(kernel, default(kernel, "triton:sm_90")), given, PARAMS)
    bound = 4e-3 if dtype == "bfloat16" else 5e-4
    for name_, value in {"out": want, **{f"grad_{n}": t for n, t in enumerate(grads)}}.items():
        error = (given[name_].double() - value).norm()
        assert float(error) <= bound * float(value.norm()), name_


@pytest.mark.parametrize("name", CASES)
def test_the_cpu_agrees(name: str, tmp_path: Path) -> None:
    spec = CASES[name]
    x = {n: t.float() for n, t in draw(spec).items()}
    want, grads = truth(spec, {n: t.double() for n, t in x.items()})
    x |= {"out": torch.full(size(spec.shape), torch.nan)}
    x |= {f"grad_{n}": torch.full_like(t, torch.nan, dtype=torch.float32) for n, t in enumerate(grads)}
    for kernel in (spec, adjoint(spec)):
        lowered = lower_kernel(kernel, default(kernel, "tvm:llvm"))
        every, dims = with_scratch(lowered, x, PARAMS, "storage")
        for step in lowered.steps:
            compile(step.program, step.schedule, tmp_path)([every[t.name] for t in step.program.tensors], dims)
    torch.testing.assert_close(x["out"].double(), want, rtol=2e-5, atol=2e-5)
    for n, value in enumerate(grads):
        torch.testing.assert_close(x[f"grad_{n}"].double(), value, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_defaults_fit_an_h100_without_spills(tmp_path: Path) -> None:
    specs = [kernel for spec in CASES.values() for kernel in (spec, adjoint(spec))]
    wide = [replace(CASES["unit length"], shape=s, sources=(MapSource("s0", "bfloat16", s, "l2norm"),))
            for s in (("B", "N", 16, n) for n in (48, 128, 512))]  # fmt: skip
    specs += [kernel for spec in wide for kernel in (spec, adjoint(spec))]
    for made in compile_all([job for spec in specs for _, job in jobs(spec, "sm_90")], tmp_path):
        assert isinstance(made, Compiled), made
        assert made.resources.spills == 0


def test_a_program_walks_whole_tiles() -> None:
    with pytest.raises(ScheduleError, match="24 rows per program are no whole number of tiles of 16"):
        lower_kernel(adjoint(CASES["gate"]), Schedule(rows=16, block=24))
