"""Programs of a step that go on with what the same grid point of another one stored: fewer launches, nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.ir.variant import dim_names
from sparsec.lower.decode.passed import passed
from sparsec.lower.decode.squares import squares
from sparsec.lower.lowered import Step
from sparsec.oracle.error import check
from sparsec.oracle.truth import oracle
from sparsec.runtime.compiled import compile
from sparsec.runtime.decode import built, kernels
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.interpreter import interpret
from sparsec.tile.language import Program, TileOp
from sparsec.tile.language import Tensor as Buffer
from sparsec.tile.rewrite import accesses
from sparsec.tile.schedule import Schedule
from sparsec.tile.verify import verify

SIZES: dict[str, Any] = {"B": 2, "H": 4, "HKV": 4, "D": 16, "DV": 16, "DX": 24}
STEPS = (9, 1, 1, 3, 1)
LEVELS = "scan_out_and_scan_out_2_and_scan_out_3"
MASSES = "scan_out_4_and_scan_out_5_and_scan_out_6"
CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "levels under a softmax": ("rsa", {}, [f"{LEVELS}_and_{MASSES}_and_mixture_mixture_and_combine_out_7"]),
    "levels that are summed": ("rsa", {"readout": "sum"}, [f"{LEVELS}_and_combine_out_4"]),
    "parts and a shared state": ("sse", {"rule": "gdn"}, ["scan_out_and_scan_out_2_and_combine_o"]),
    "two parts of a token": (
        "sse",
        {"rule": "gdn", "k": 2},
        ["scan_out_2", "scan_out_2_out_2", "scan_out_and_combine_o"],
    ),
}


def decoded(name: str, dtype: str) -> tuple[Tensor, Tensor, list[Program]]:
    """The outputs of steps, the truth, and the programs of a step of one token."""
    design, knobs, _ = CASES[name]
    variant = sparsec.preset(design, raw=True, **knobs)
    made = compile(variant, "interpreter")
    sizes = {n: s for n, s in SIZES.items() if n in dim_names(variant)}
    x = sparsec.inputs(variant, dtype=dtype, seed=0, T=sum(STEPS), **sizes)
    growing = {n for n, s in variant.inputs.items() if len(s.shape) > 1 and str(s.shape[1]) == "T"}
    cache, found, start = made.init_cache(2, deterministic=False), list[Tensor](), 0
    for count in STEPS:
        step: dict[str, Any] = {n: y[:, start : start + count] if n in growing else y for n, y in x.items()}
        out = made.decode(cache, **step)
        assert isinstance(out, Tensor)
        found.append(out)
        start += count
    truth = oracle(variant, x, form="vector")
    assert isinstance(truth, Tensor)
    programs = [launch.step.program for launch in made.decoder.kept()[-1].launches]
    return torch.cat(found, dim=1), truth, programs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_levels_and_their_merge_are_one_launch(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As right as apart; with what is passed on rounded as what is stored, the same bits."""
    found, truth, programs = decoded(name, dtype)
    assert [p.name for p in programs if not p.name.startswith("route")] == CASES[name][2]
    for program in programs:
        verify(program)
    if dtype == "float32":
        verdict = check(found, truth, dtype, "o")
        assert verdict, verdict.sentence
    monkeypatch.setattr(kernels, "passed", lambda first, second, needed: None)
    apart, _, more = decoded(name, dtype)
    assert torch.equal(found, apart) and len(more) > len(programs)


def test_squares_of_rows_are_worked_out_where_the_rows_are(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _, programs = decoded("levels that are summed", "float32")
    monkeypatch.setattr(kernels, "squares", lambda spec: False)
    apart, _, more = decoded("levels that are summed", "float32")
    assert [p.name for p in more if p not in programs and p.name.startswith("norm2")] == ["norm2_v_3"]
    assert len(more) == len(programs) + 1 and torch.allclose(found, apart, rtol=1e-5, atol=1e-6)


def test_squares_of_rows_in_pages_are_read_as_they_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in pages have other indices than their squares have."""
    left = list[tuple[int, int, int]]()

    def watched(found: Any, outputs: Any, paged: Any) -> Any:
        rows = {k.kernel.spec.out for k in found if squares(k.kernel.spec)}
        made = kernels.without_squares(found, outputs, paged)
        left.append((len(found), len(made), len(kernels.without_squares(found, outputs, rows))))
        return made

    monkeypatch.setattr(built, "without_squares", watched)
    decoded("levels that are summed", "float32")
    every, without, kept = left[-1]
    assert without == every - 1 and kept == every


X = Buffer("x", "float32", ("B", "N", 4, 8))


def maker() -> Step:
    """y = 2 x and z = -x, a row per (token, head, sequence)."""
    with tile.Builder() as builder:
        axis = builder.axis("e", 8)
        place = (tile.program_id(2), tile.program_id(0), tile.program_id(1), tile.iota(axis))
        x = tile.load(X, *place)
        y, z = Buffer("y", "float32", X.shape), Buffer("z", "float32", X.shape)
        tile.store(y, *place, value=tile.apply(Fn.MUL, x, 2.0))
        tile.store(z, *place, value=tile.apply(Fn.NEG, x))
        return Step(builder.program("maker", [X, y, z], PARAMS, GRID()), Schedule())


def twice() -> Step:
    """y = 2 x, then y = 3 x at the same place."""
    with tile.Builder() as builder:
        axis = builder.axis("e", 8)
        place = (tile.program_id(2), tile.program_id(0), tile.program_id(1), tile.iota(axis))
        x, y = tile.load(X, *place), Buffer("y", "float32", X.shape)
        for factor in (2.0, 3.0):
            tile.store(y, *place, value=tile.apply(Fn.MUL, x, factor))
        return Step(builder.program("twice", [X, y], PARAMS, GRID()), Schedule())


def reader(head: int = 0, bound: bool = False, size: int = 8) -> Step:
    """out = y + 1 of a head behind its own, of the first token alone where ``bound``."""
    with tile.Builder() as builder:
        builder.axis("other", 2)
        axis = builder.axis("columns", size)
        own = tile.program_id(1)
        other = tile.apply(Fn.TRUNCMOD, tile.apply(Fn.ADD, own, head), 4) if head else own
        at = (tile.program_id(2), tile.program_id(0))
        y, out = Buffer("y", "float32", X.shape), Buffer("out", "float32", X.shape)
        limits: dict[int, tile.Value] = {1: 1} if bound else {}
        found = tile.load(y, *at, other, tile.iota(axis), bounds=limits, other=5.0)
        tile.store(out, *at, own, tile.iota(axis), value=tile.apply(Fn.ADD, found, 1.0))
        return Step(builder.program("reader", [y, out], PARAMS, GRID()), Schedule())


PARAMS = [("B", "int32"), ("N", "int32")]


def GRID() -> tuple[Any, ...]:
    return tile.param("N"), tile.const(4), tile.param("B")


def run(steps: list[Step], x: Tensor) -> Tensor:
    buffers = {"x": x, **{n: torch.full_like(x, float("nan")) for n in ("y", "z", "out")}}
    for step in steps:
        named = {t.name: buffers[t.name] for t in step.program.tensors}
        interpret(step.program, named, {"B": x.shape[0], "N": x.shape[1]})
    return buffers["out"]


@pytest.mark.parametrize("bound", [False, True])
def test_a_value_is_passed_on(bound: bool) -> None:
    x = torch.randn(2, 3, 4, 8)
    one = passed(maker(), reader(bound=bound), {"z"})
    assert one is not None
    assert {t.name for t in one.program.tensors} == {"x", "z", "out"}, "what nobody else reads is not stored"
    verify(one.program)
    wanted = run([maker(), reader(bound=bound)], x)
    assert torch.equal(run([one], x), wanted) and wanted[:, 1:].eq(6.0).all() == bound
    kept = passed(maker(), reader(), {"y", "z"})
    assert kept is not None and {t.name for t in kept.program.tensors} == {"x", "y", "z", "out"}


def test_of_two_stores_of_one_place_the_last_is_passed_on() -> None:
    x = torch.randn(2, 3, 4, 8)
    one = passed(twice(), reader(), set())
    assert one is not None
    assert torch.equal(run([one], x), run([twice(), reader()], x)) and torch.equal(run([one], x), 3 * x + 1)


def test_what_another_grid_point_stored_is_not_passed_on() -> None:
    assert passed(maker(), reader(head=1), set()) is None
    assert passed(maker(), reader(size=4), set()) is None
    assert passed(reader(), maker(), set()) is None


def test_loads_come_before_stores() -> None:
    """No compiler would move them, as it does not know the tensors apart."""
    one = passed(maker(), reader(), {"y"})
    assert one is not None
    both = [node.serial for node, _ in accesses(one.program) if node.op is TileOp.LOAD]
    assert max(both) < min(node.serial for node, _ in accesses(one.program) if node.op is TileOp.STORE)
