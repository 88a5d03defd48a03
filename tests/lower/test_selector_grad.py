"""Gradients of chosen units' scores, queries and keys, in the tile interpreter against autograd in fp64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparsec.lower.registry import default, lower_kernel
from sparsec.oracle.error import ratio
from sparsec.plan.specs import Pool, Selector
from sparsec.scalar.fn import Fn
from sparsec.testing.kernels.selector import OUTPUTS, Sizes, draw, grads, selector, truth
from sparsec.testing.mistakes.mutants import Args, Change, mutated
from sparsec.testing.mistakes.named import is_map
from sparsec.tile import build as tile
from sparsec.tile.language import Node, TileOp, access_of
from sparsec.tile.schedule import Schedule, ScheduleError
from sparsec.tile.verify import verify

Run = Callable[..., None]
RULES = ("stick", "softmax", "softmax_sink", "sigmoid", "raw")
SMALL = Schedule(rows=16, block=8)
BOUNDS = {"float32": 1e-5, "bfloat16": 0.008, "float16": 0.001}


SIZES = Sizes()


def pulled(
    run: Run, s: Selector, n: Sizes, schedules: tuple[Schedule, Schedule], exact: bool = True,
    change: Change | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # fmt: skip
    """What the kernels write, one after the other, and the truth."""
    x, kernels = draw(s, n, exact), grads(s)
    for kernel, schedule in ((kernels[0], schedules[0]), (kernels[1], schedules[1])):
        lowered = lower_kernel(kernel, schedule)
        for step in lowered.steps:
            verify(step.program)
        lowered = lowered if change is None else mutated(lowered, change)
        run(lowered, x, n.params, mode="exact" if exact else "storage")
    return {name: x[name] for name in OUTPUTS}, truth(s, x)


def check(run: Run, s: Selector, n: Sizes = SIZES, schedules: tuple[Schedule, Schedule] = (SMALL, SMALL)) -> None:
    """Run exactly and compare."""
    found, want = pulled(run, s, n, schedules)
    for name, x in found.items():
        torch.testing.assert_close(x, want[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("group", ["mean", "sum", None])
@pytest.mark.parametrize("share", [1, 3, 4, 16])
def test_groups(run: Run, group: str | None, share: int) -> None:
    check(run, selector(2 * share if share < 16 else share, 2 if share < 16 else 1, group=group))


@pytest.mark.parametrize("fn", RULES)
@pytest.mark.parametrize("slots", [1, 4, 7])
def test_rules(run: Run, fn: str, slots: int) -> None:
    check(run, selector(2, 2, weights=fn, slots=slots, k=slots))


@pytest.mark.parametrize("fn", RULES)
@pytest.mark.parametrize("slots,block", [(7, 1), (7, 2), (11, 4), (12, 4), (3, 16)])
def test_lists_read_in_parts(run: Run, fn: str, slots: int, block: int) -> None:
    s = selector(3, 1, weights=fn, slots=slots, k=slots)
    check(run, s, schedules=(Schedule(rows=8, block=block), Schedule(rows=16)))


@pytest.mark.parametrize("tq,units", [(1, 1), (15, 2), (16, 3), (17, 40), (35, 7)])
def test_lengths(run: Run, tq: int, units: int) -> None:
    check(run, selector(), Sizes(tq, units))


def test_lists_without_units(run: Run) -> None:
    for fn in RULES:
        found, _ = pulled(run, selector(weights=fn), Sizes(5, empty=1.1), (SMALL, SMALL))
        assert all(bool((x == 0).all()) for x in found.values())


@pytest.mark.parametrize("dim", [16, 80])
def test_head_dims(run: Run, dim: int) -> None:
    check(run, selector(dim=dim))
    whole = replace(SMALL, split_dims=False)
    check(run, selector(dim=dim, group=None), schedules=(whole, replace(whole, rows=6)))


def test_popular_units_are_cut_into_shares(run: Run) -> None:
    for group, share in (("mean", 2), (None, 3)):
        s = selector(2 * share, 2, group=group, slots=3, k=3)
        check(run, s, Sizes(131, 30, 1), (Schedule(rows=64, block=4), Schedule(rows=16)))


@pytest.mark.parametrize("target", ["triton:sm_90", "tvm:llvm"])
def test_default_schedules(run: Run, target: str) -> None:
    for s in (selector(dim=128), selector(6, 2, group="sum", slots=8, k=8), selector(16, 1, slots=33, k=33)):
        one, other = (default(kernel, target) for kernel in grads(s))
        check(run, s, Sizes(batch=1), (one, other))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("key_dtype", ["float32", None])
@pytest.mark.parametrize("fn", ["stick", "softmax"])
def test_storage_rounding(run: Run, fn: str, key_dtype: str | None, dtype: str) -> None:
    for scale in (0.2, 1.5):
        s = selector(8, 2, dim=64, dtype=dtype, key_dtype=key_dtype, weights=fn, scale=scale)
        found, want = pulled(run, s, Sizes(34, 20, 1), (SMALL, SMALL), exact=False)
        for name, x in found.items():
            assert ratio(x.double() - want[name], want[name]) <= (1e-5 if name == "ds" else BOUNDS[dtype])


def test_only_what_is_asked_for(run: Run) -> None:
    for fn in ("stick", "softmax"):
        s = selector(weights=fn)
        x = draw(s, SIZES, exact=True)
        lowered = lower_kernel(replace(grads(s)[0], grad_q=None), SMALL)
        run(lowered, x, SIZES.params, mode="exact")
        torch.testing.assert_close(x["ds"], truth(s, x)["ds"], rtol=1e-9, atol=1e-9)
        assert ("keys" in {t.name for t in lowered.steps[0].program.tensors}) == (fn == "stick")


def later_slots_forgotten(node: Node, args: Args) -> Node | None:
    """The stick's weights of later slots do not depend on a score."""
    return tile.apply(Fn.MUL, args[0], 0.0) if node.op is TileOp.SCAN and node.dtype == "float32" else None


def scale_missing(node: Node, args: Args) -> Node | None:
    """Products without their scale."""
    scaled = is_map(node, Fn.MUL) and node.args[1].op is TileOp.CONST and node.args[1].attrs[0] == SCALE
    return args[0] if scaled else None


def next_unit(node: Node, args: Args) -> Node | None:
    """Unit 0 is read where unit 1 was chosen."""
    if node.op is not TileOp.LOAD or access_of(node).tensor.name != "ids":
        return None
    loaded = tile.Builder.current().node(node.op, args, node.attrs, node.dtype, node.axes)
    return tile.apply(Fn.WHERE, tile.apply(Fn.EQ, loaded, 1), 0, loaded)


def last_turn_skipped(node: Node, args: Args) -> Args | None:
    """Loops that carry tiles end one early."""
    tiles = node.op is TileOp.LOOP and any(a.axes and a.dtype == "float32" for a in node.args[2:])
    return (args[0], tile.apply(Fn.SUB, args[1], 1), *args[2:]) if tiles else None


def first_slot_for_all(node: Node, args: Args) -> Args | None:
    """The gradients of slot 0 for every choice."""
    read = node.op is TileOp.LOAD and access_of(node).tensor.name == "ds"
    return (*args[:3], tile.apply(Fn.MUL, args[3], 0), *args[4:]) if read else None


SCALE = 0.15
MISTAKES: dict[Change, tuple[str, ...]] = {
    later_slots_forgotten: ("ds",),
    scale_missing: ("dq", "dkeys"),
    next_unit: ("dq", "dkeys"),
    last_turn_skipped: ("dq", "dkeys"),
    first_slot_for_all: ("dkeys",),
}


def wrong(run: Run, change: Change) -> Iterator[str]:
    """The outputs that a mistake makes wrong in bfloat16."""
    s, n = selector(4, 2, dtype="bfloat16", scale=2 * SCALE), Sizes(34, 20, 1)
    found, want = pulled(run, s, n, (Schedule(rows=16, block=2), SMALL), exact=False, change=change)
    for name, x in found.items():
        if not ratio(x.double() - want[name], want[name]) <= BOUNDS["bfloat16"]:
            yield name


@pytest.mark.parametrize("change", MISTAKES, ids=lambda change: change.__name__)
def test_mistakes_show(run: Run, change: Change) -> None:
    assert set(MISTAKES[change]) <= set(wrong(run, change))
    assert not list(wrong(run, lambda node, args: None))


def test_refusals_name_the_numbers() -> None:
    one, other = grads(selector(32, 2))
    with pytest.raises(ScheduleError, match="3 tokens x 8 slots"):
        lower_kernel(one, replace(SMALL, rows=3))
    with pytest.raises(ScheduleError, match="8 rows do not hold the 16 heads"):
        lower_kernel(other, replace(SMALL, rows=8))
    for refused in ({"softmax": True}, {"group": "max"}, {"pool": Pool("overlap", 32, 16, 64)}):
        for kernel in grads(selector(**refused)):
            with pytest.raises(ScheduleError, match="summed or averaged over a group, and no other"):
                lower_kernel(kernel, SMALL)
