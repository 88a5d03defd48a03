"""Printed Gluon: the numbers of the tile interpreter on a machine of threads, refusals, and what an H100 would get."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsec.backends.triton.arguments import descriptor_arguments, signature
from sparsec.backends.triton.compile import Compiled, Job, compile_all
from sparsec.backends.triton.emit import emit
from sparsec.backends.triton.gluon.emit import TAKEN
from sparsec.backends.triton.names import GLUON
from sparsec.frontends.preset import preset
from sparsec.ir.variant import dim_names
from sparsec.lower import segments
from sparsec.lower.descriptors import without_roles
from sparsec.lower.registry import lower_kernel
from sparsec.lower.tiled.forward import lower
from sparsec.plan.specs import BlockList, Piece, TiledAttention
from sparsec.runtime.compiled import compile
from sparsec.runtime.decode.space import for_steps
from sparsec.runtime.exported.module import Exported
from sparsec.scalar.expr import var
from sparsec.scalar.fn import Fn
from sparsec.testing.gluon import machine, memory
from sparsec.testing.gluon.machine import run
from sparsec.testing.kernels.tiled import Tensors, TiledCase, truth
from sparsec.tile import build as tile
from sparsec.tile.chain import Chain
from sparsec.tile.interpreter import interpret
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule, ScheduleError

QUERY, KEY = var("i"), var("j")
SCORE = var("score", "float")
PRODUCER = Schedule(
    rows=128, block=64, phases="split", descriptors=True, warps=8, stages=2, registers=168, producer=True
)
CAUSAL = Piece("k", "v", "TK", KEY <= QUERY)
WINDOW = replace(CAUSAL, where=(KEY <= QUERY) & ((KEY < 20) | (QUERY - KEY < 100)))
SLOTS = Piece("sk", "sv", "M", None, batched=False, size=64)
STRIPES = (KEY <= QUERY) & ((KEY // 64) % 2 == 0)
LISTS = BlockList("lists", STRIPES, (), "ids", "counts", "TK", 128, 64, False, 1)
LISTED = Piece("k", "v", "TK", STRIPES, listed=LISTS)
PLAIN = TiledAttention("attention", "q", (CAUSAL,), "out", "lse", 2, 1, 64, 64, 0.125, "bfloat16")
OTHERS = [p for p in os.environ.get("SPARSEC_TEST_TRITONS", "").split(os.pathsep) if p]

SPECS: dict[str, tuple[TiledAttention, Schedule]] = {
    "causal": (PLAIN, PRODUCER),
    "dense, one group": (
        replace(PLAIN, pieces=(Piece("k", "v", "TK"),)), replace(PRODUCER, rows=64, warps=4),
    ),
    "window of wider keys": (
        replace(PLAIN, pieces=(WINDOW,), head_dim=128), replace(PRODUCER, block=128, stages=3),
    ),
    "window in one loop": (replace(PLAIN, pieces=(WINDOW,)), replace(PRODUCER, phases="branch")),
    "slots, sinks, a cap and wider values": (
        replace(PLAIN, pieces=(WINDOW, SLOTS), value_dim=128, sink="sink", softcap=3.0, dtype="float16"), PRODUCER,
    ),
    "a bias": (replace(PLAIN, pieces=(replace(CAUSAL, bias=SCORE * 0.5 + (KEY - QUERY) * 0.25),), lse=None), PRODUCER),
    "a block list": (replace(PLAIN, pieces=(LISTED,)), replace(PRODUCER, phases="branch")),
}  # fmt: skip


def drawn(spec: TiledAttention) -> tuple[TiledCase, Tensors]:
    """Inputs whose queries end where the keys do, and poisoned outputs."""
    case = TiledCase(spec, {"B": 2, "TQ": 150, "TK": 300, "q_offset": 150, "M": 64})
    out = torch.full((2, 150, spec.heads, spec.value_dim), float("nan"), dtype=getattr(torch, spec.dtype))
    x = {**case.draw(), "out": out, "lse": torch.full((2, 150, spec.heads), float("nan"))}
    for listed in (p.listed for p in spec.pieces if p.listed is not None):
        lists = lower_kernel(listed, Schedule(rows=128, block=64, warps=8)).steps[0].program
        x |= {t.name: torch.zeros((1, 1, 2, 5)[: t.rank], dtype=torch.int32) for t in lists.tensors}
        interpret(lists, {t.name: x[t.name] for t in lists.tensors}, case.params)
    return case, x


def on_machine(source: str, program: Program, schedule: Schedule, case: TiledCase, x: Tensors) -> Tensors:
    """What printed Gluon writes, on copies."""
    mine = {t.name: x[t.name].clone() for t in program.tensors}
    run(source, program, schedule, mine, case.params)
    return mine


@pytest.mark.parametrize("name", SPECS)
def test_the_text_computes_what_the_program_does(name: str) -> None:
    spec, schedule = SPECS[name]
    program, (case, x) = lower(spec, schedule), drawn(spec)
    mine = on_machine(emit(program, schedule), program, schedule, case, x)
    theirs = {t.name: x[t.name].clone() for t in program.tensors}
    interpret(program, theirs, case.params)
    want = truth(case, x)
    assert (mine["out"].double() - want["out"]).norm() <= 3e-3 * want["out"].norm()
    torch.testing.assert_close(mine["out"], theirs["out"], rtol=0, atol=1e-3)
    if spec.lse is not None:
        torch.testing.assert_close(mine["lse"], theirs["lse"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("barrier", ["queries_full", "keys_full", "values_full", "free"])
def test_a_machine_sees_a_wait_that_is_not_there(barrier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LATE", 0.01)
    program, (case, x) = lower(PLAIN, PRODUCER), drawn(PLAIN)
    hasty = re.sub(rf"( +)mbarrier.wait\({barrier}.*", r"\1pass", emit(program, PRODUCER))
    with pytest.raises((AssertionError, memory.Misused)):
        assert not on_machine(hasty, program, PRODUCER, case, x)["out"].isnan().any()


def test_a_machine_sees_what_is_freed_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LATE", 0.01)
    program, (case, x) = lower(PLAIN, PRODUCER), drawn(PLAIN)
    source = emit(program, PRODUCER)
    free, wait = "        mbarrier.arrive(free.index(slot), count=1)\n", "        acc, weights = hopper"
    early = source.replace(free, "").replace(wait, free + wait)
    assert not on_machine(source, program, PRODUCER, case, x)["out"].isnan().any()
    assert on_machine(early, program, PRODUCER, case, x)["out"].isnan().any()


@pytest.mark.parametrize("place", [0, 1])
def test_a_machine_sees_a_fence_that_is_not_there(place: int) -> None:
    """After the zeros that the first turn finds, and before the output leaves as a box."""
    program, (case, x) = lower(PLAIN, PRODUCER), drawn(PLAIN)
    source, fence = emit(program, PRODUCER), "hopper.fence_async_shared()"
    start = [found.start() for found in re.finditer(re.escape(fence), source)][place]
    source = source[:start] + "pass" + source[start + len(fence) :]
    with pytest.raises(memory.Misused, match="before a fence"):
        on_machine(source, program, PRODUCER, case, x)


def test_a_machine_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PATIENCE", 0.2)
    program, (case, x) = lower(PLAIN, PRODUCER), drawn(PLAIN)
    source = re.sub(r"( +)mbarrier.arrive\(free.*", r"\1pass", emit(program, PRODUCER))
    with pytest.raises(memory.Stuck, match="stays in phase"):
        on_machine(source, program, PRODUCER, case, x)


def test_source_of_a_window(golden: Callable[[str], None]) -> None:
    spec, schedule = replace(PLAIN, pieces=(WINDOW,)), PRODUCER
    golden(emit(lower(spec, schedule), schedule))


REFUSED: dict[str, tuple[TiledAttention, Schedule, str]] = {
    "single precision": (replace(PLAIN, dtype="float32"), PRODUCER, "has 128 rows of float32, no groups of 64"),
    "few rows": (PLAIN, replace(PRODUCER, rows=32, warps=4), "has 32 rows of bfloat16, no groups of 64"),
    "warps": (PLAIN, replace(PRODUCER, warps=4), "128 rows need 8 warps that compute, 4 for each 64; not 4"),
    "a stage": (PLAIN, replace(PRODUCER, stages=1), "those of the turn before are read: 2 stages at least"),
    "parts of rows": (replace(PLAIN, head_dim=80), PRODUCER, "products and 1 sums of products a turn, not one of each"),
    "columns": (PLAIN, replace(PRODUCER, value_block=32), "has an operand that no descriptor loads"),
    "a name": (
        replace(PLAIN, pieces=(CAUSAL, replace(SLOTS, length="STAGES"))),
        PRODUCER,
        "has an argument named STAGES, which its Gluon source uses",
    ),
}


def test_tensors_may_be_called_what_the_source_calls_its_own() -> None:
    assert set(TAKEN) == GLUON
    spec = replace(PLAIN, q="queries", pieces=(replace(CAUSAL, k="slot", v="slot_"),), out="weights", lse="sums")
    program, (case, x) = lower(spec, PRODUCER), drawn(PLAIN)
    mine = {new: x[old] for new, old in {"queries": "q", "slot": "k", "slot_": "v", "weights": "out"}.items()}
    mine["sums"] = x["lse"]
    found = on_machine(emit(program, PRODUCER), program, PRODUCER, case, mine)["weights"]
    plain = lower(PLAIN, PRODUCER)
    assert torch.equal(found, on_machine(emit(plain, PRODUCER), plain, PRODUCER, case, x)["out"])


def test_a_first_turn_of_its_own_needs_one_loop() -> None:
    spec, base = SPECS["dense, one group"]
    one = replace(base, phases="branch", peel=True)
    assert "first = " in emit(lower(spec, one), one)
    with pytest.raises(ScheduleError, match="peel=False"):
        emit(lower(SPECS["window of wider keys"][0], replace(PRODUCER, peel=True)), replace(PRODUCER, peel=True))


def test_sums_that_are_read_between_loops_are_refused() -> None:
    with tile.Builder() as b:
        m, n, d, e = (b.axis(x, s) for x, s in (("m", 64), ("n", 64), ("d", 64), ("e", 64)))
        q, k, v, o = (Tensor(x, "bfloat16", ("T", 64)) for x in ("q", "k", "v", "o"))
        row, column = tile.apply(Fn.ADD, tile.apply(Fn.MUL, tile.program_id(0), 64), tile.iota(m)), tile.iota(e)
        queries = tile.load(q, row, tile.iota(d), bounds={0: tile.param("T")})

        def turn(at: Node, acc: Node) -> list[Node]:
            key = tile.apply(Fn.ADD, tile.apply(Fn.MUL, at, 64), tile.iota(n))
            weights = tile.cast(tile.dot(queries, tile.load(k, key, tile.iota(d)), d), "bfloat16")
            return [tile.dot(weights, tile.load(v, key, column), n, tile.apply(Fn.MUL, acc, 0.5))]

        (first,) = tile.loop(0, 2, 1, [tile.full(0.0, m, e)], turn)
        (last,) = tile.loop(2, 4, 1, [first], turn)
        for to in (o, replace(o, name="early")):
            value = tile.cast(last if to is o else first, "bfloat16")
            tile.store(to, row, column, value=value, bounds={0: tile.param("T")})
        program = b.program("twice", [q, k, v, o, replace(o, name="early")], [("T", "int32")], (tile.const(1),))
    with pytest.raises(ScheduleError, match="do not add to the same sums, one after the other"):
        emit(program, replace(PRODUCER, rows=64, warps=4))


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_roles_is_refused(name: str) -> None:
    spec, schedule, why = REFUSED[name]
    with pytest.raises(ScheduleError, match=re.escape(why)):
        emit(lower(spec, schedule), schedule)


def test_a_kernel_in_a_chain_is_refused() -> None:
    with pytest.raises(ScheduleError, match="begins while another kernel ends"):
        emit(lower(PLAIN, PRODUCER), PRODUCER, Chain(head=True))


def test_without_descriptors_it_is_the_triton_printing() -> None:
    plain = replace(PRODUCER, descriptors=False)
    assert "gluon" not in emit(lower(PLAIN, plain), plain)
    assert descriptor_arguments(lower(PLAIN, plain), plain) == ()


def test_where_boxes_cannot_be_loaded_all_warps_are_alike(tmp_path: Path) -> None:
    layer = compile(preset("full"), "triton:sm_90", cache_dir=tmp_path)
    dims = {"H": 2, "HKV": 1, "D": 64, "DV": 64, "B": 1, "T": 1024}
    layer.schedules = {kernel.name: PRODUCER for kernel in layer.plan(dims, "bfloat16").kernels}
    (kernel,) = layer.plan(dims, "bfloat16").kernels
    assert layer.schedule(kernel, dims).producer
    alike = without_roles(PRODUCER)
    assert not alike.producer and not alike.descriptors and (alike.rows, alike.block, alike.warps) == (64, 64, 4)
    assert without_roles(alike) is alike
    assert segments.schedule(kernel.spec, PRODUCER) == alike
    assert for_steps(kernel.spec, PRODUCER, layer.target, 1, 1000) == alike
    assert not for_steps(kernel.spec, PRODUCER, layer.target, 1, 1).producer
    steps = Exported(layer, {**dims, "q_offset": 0}, "bfloat16").steps
    assert [step.schedule for step in steps] == [alike]


@pytest.mark.slow
@pytest.mark.parametrize("other", [None, *OTHERS])
def test_an_h100_gets_unserialised_products_without_spills(other: str | None, tmp_path: Path) -> None:
    wide = replace(PLAIN, head_dim=128, value_dim=128)
    specs = [PLAIN, wide, replace(wide, pieces=(replace(WINDOW, where=(KEY <= QUERY) & (QUERY - KEY < 1024)),))]
    schedule = replace(PRODUCER, block=128)
    programs = [lower(spec, schedule) for spec in specs]
    jobs = [
        Job(emit(p, schedule), p.name, signature(p, schedule), "sm_90", schedule.warps, schedule.stages, 168)
        for p in programs
    ]
    for program, made in zip(programs, compile_all(jobs, tmp_path, python_path=other), strict=True):
        assert isinstance(made, Compiled), made
        assert made.resources.wgmma and made.resources.spills == 0 and made.resources.registers == 168
        loops = emit(program, schedule).split("def attention_loads")[0].count("for i")
        waits = made.text.count("wgmma.wait_group.sync.aligned")
        assert waits == 2 * (2 * loops + 1), "a wait more than the text has: products are serialised"


@pytest.mark.parametrize(("queries", "keys"), [(128, 192), (256, 160), (384, 320), (128, 96), (128, 80), (128, 64)])
def test_default_tiles_divide_the_blocks_of_given_lists(queries: int, keys: int) -> None:
    """Keys of a block need not be a power of two."""
    made = preset("nsa", selection="given", branches="slc", query_block=queries, block=keys)
    sizes = {"B": 1, "H": 4, "HKV": 1, "T": 1920, "TQ": 1920, "TK": 1920, "D": 128, "DV": 128}
    known = {name: size for name, size in sizes.items() if name in dim_names(made)}
    assert "def attend_out" in compile(made, "triton:sm_90").source(known, "bfloat16")
