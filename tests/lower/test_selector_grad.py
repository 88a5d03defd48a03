"""Gradients of chosen units' scores, queries and keys, in the tile interpreter against autograd in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from sparsec.lower.candidates import sharing
from sparsec.lower.registry import default, lower_kernel
from sparsec.oracle.error import ratio
from sparsec.oracle.weights import weigh_query
from sparsec.plan.grad_specs import SelectorGradKeys, SelectorGradQ
from sparsec.plan.specs import Pool, Selector
from sparsec.scalar.fn import Fn
from sparsec.testing.mutants import Args, Change, mutated
from sparsec.tile import build as tile
from sparsec.tile.language import Node, TileOp
from sparsec.tile.memory import access_of
from sparsec.tile.schedule import Schedule, ScheduleError

Run = Callable[..., None]
RULES = ("stick", "softmax", "softmax_sink", "sigmoid", "raw")
SMALL = Schedule(rows=16, block=8)
BOUNDS = {"float32": 1e-5, "bfloat16": 0.008, "float16": 0.001}


@dataclass(frozen=True)
class Sizes:
    """Queries, units, batch, and the share of slots that hold nothing."""

    tq: int = 21
    units: int = 12
    batch: int = 2
    empty: float = 0.2

    @property
    def params(self) -> dict[str, int]:
        """The launch parameters; the number of tokens has no part in it."""
        return {"B": self.batch, "TQ": self.tq, "TK": 10**6, "q_offset": 7, "N": self.units, "NB": self.units}


SIZES = Sizes()


def spec(heads: int = 4, kv_heads: int = 2, **changes: object) -> Selector:
    """5 units by stick-breaking per key/value head, scored by the mean of the group."""
    base = Selector(
        "select", "q", "keys", "ids", "w", heads, kv_heads, 32, "N", "NB", 0.3, 5, 5, "float32", group="mean",
        order="newest", weights="stick",
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def lists(s: Selector) -> int:
    """Lists per token."""
    return s.heads // sharing(s)


def draw(s: Selector, n: Sizes, exact: bool) -> dict[str, Tensor]:
    """Inputs of both kernels; distinct units, the first of them popular, -1 among them; NaN where nothing is."""
    torch.manual_seed(n.tq)
    kind = torch.float64 if exact else getattr(torch, s.dtype)
    wide = torch.float64 if exact else torch.float32
    q = torch.randn(n.batch, n.tq, s.heads, s.dim, dtype=torch.float64).to(kind)
    keys = torch.randn(n.batch, n.units, s.kv_heads, s.dim, dtype=torch.float64)
    rank = torch.rand(n.batch, n.tq, lists(s), n.units) + torch.arange(n.units).eq(0)
    ids = rank.topk(min(s.slots, n.units), -1).indices
    ids = torch.nn.functional.pad(ids, (0, s.slots - ids.shape[-1]), value=-1)
    ids = ids.gather(-1, torch.rand(ids.shape).argsort(-1))
    ids = ids.masked_fill(torch.rand(ids.shape) < n.empty, -1).int()
    dw = torch.randn(ids.shape, dtype=wide).masked_fill(ids < 0, math.nan)
    keys = keys if exact else keys.to(getattr(torch, s.key_dtype or s.dtype))
    return {"q": q, "keys": keys, "ids": ids.contiguous(), "dw": dw}


def truth(s: Selector, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the oracle's rules, and the gradients of chosen scores, queries and keys; all fp64."""
    q, keys = (x[name].double().requires_grad_() for name in ("q", "keys"))
    score = s.scale * torch.einsum("bthd,bnhd->bthn", q, keys.repeat_interleave(s.heads // s.kv_heads, 2))
    if s.group is not None:
        grouped = score.unflatten(2, (s.kv_heads, sharing(s)))
        score = grouped.mean(3) if s.group == "mean" else grouped.sum(3)
    flat, ids = score.flatten(0, 2), x["ids"].flatten(0, 2).long()
    weights = torch.stack([weigh_query(row, chosen, s.weights) for row, chosen in zip(flat, ids, strict=True)])  # type: ignore[arg-type]
    weights = weights.view(x["ids"].shape) + 0.0 * score.sum()
    dw = x["dw"].double().masked_fill(x["ids"] < 0, 0.0)
    by_unit, dq, dkeys = torch.autograd.grad(weights, (score, q, keys), dw)
    ds = by_unit.gather(-1, x["ids"].long().clamp_min(0)).masked_fill(x["ids"] < 0, 0.0)
    return {"w": weights.detach(), "ds": ds, "dq": dq, "dkeys": dkeys}


def kernels(s: Selector) -> tuple[SelectorGradQ, SelectorGradKeys]:
    """The two backward kernels."""
    to_keys = SelectorGradKeys("pull_keys", s, "ds", "dkeys", s.dtype)
    return SelectorGradQ("pull_q", s, "dw", "ds", "dq", s.dtype), to_keys


def pulled(
    run: Run, s: Selector, n: Sizes, schedules: tuple[Schedule, Schedule], exact: bool = True,
    change: Change | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # fmt: skip
    """What the kernels write into outputs full of NaN, one after the other, and the truth."""
    x = draw(s, n, exact)
    want = truth(s, x)
    wide = torch.float64 if exact else torch.float32
    x |= {"w": want["w"].to(wide), "ds": torch.full_like(x["dw"], math.nan)}
    x |= {f"d{name}": torch.full_like(x[name], math.nan, dtype=x["q"].dtype) for name in ("q", "keys")}
    for kernel, schedule in zip(kernels(s), schedules, strict=True):
        lowered = lower_kernel(kernel, schedule)
        lowered = lowered if change is None else mutated(lowered, change)
        run(lowered, x, n.params, mode="exact" if exact else "storage")
    return {name: x[name] for name in ("ds", "dq", "dkeys")}, want


def check(run: Run, s: Selector, n: Sizes = SIZES, schedules: tuple[Schedule, Schedule] = (SMALL, SMALL)) -> None:
    """Run exactly and compare."""
    found, want = pulled(run, s, n, schedules)
    for name, x in found.items():
        torch.testing.assert_close(x, want[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("group", ["mean", "sum", None])
@pytest.mark.parametrize("share", [1, 3, 4, 16])
def test_groups(run: Run, group: str | None, share: int) -> None:
    check(run, spec(2 * share if share < 16 else share, 2 if share < 16 else 1, group=group))


@pytest.mark.parametrize("fn", RULES)
@pytest.mark.parametrize("slots", [1, 4, 7])
def test_rules(run: Run, fn: str, slots: int) -> None:
    check(run, spec(2, 2, weights=fn, slots=slots, k=slots))


@pytest.mark.parametrize("fn", RULES)
@pytest.mark.parametrize("slots,block", [(7, 1), (7, 2), (11, 4), (12, 4), (3, 16)])
def test_lists_read_in_parts(run: Run, fn: str, slots: int, block: int) -> None:
    s = spec(3, 1, weights=fn, slots=slots, k=slots)
    check(run, s, schedules=(Schedule(rows=8, block=block), Schedule(rows=16)))


@pytest.mark.parametrize("tq,units", [(1, 1), (15, 2), (16, 3), (17, 40), (53, 7)])
def test_lengths(run: Run, tq: int, units: int) -> None:
    check(run, spec(), Sizes(tq, units))


def test_lists_without_units(run: Run) -> None:
    for fn in RULES:
        found, _ = pulled(run, spec(weights=fn), Sizes(empty=1.1), (SMALL, SMALL))
        assert all(bool((x == 0).all()) for x in found.values())


@pytest.mark.parametrize("dim", [16, 80])
def test_head_dims(run: Run, dim: int) -> None:
    check(run, spec(dim=dim))
    whole = replace(SMALL, split_dims=False)
    check(run, spec(dim=dim, group=None), schedules=(whole, replace(whole, rows=6)))


def test_popular_units_are_cut_into_shares(run: Run) -> None:
    for group, share in (("mean", 2), (None, 3)):
        s = spec(2 * share, 2, group=group, slots=3, k=3)
        check(run, s, Sizes(131, 30, 1), (Schedule(rows=64, block=4), Schedule(rows=16)))


@pytest.mark.parametrize("target", ["triton:sm_90", "tvm:llvm"])
def test_default_schedules(run: Run, target: str) -> None:
    for s in (spec(dim=128), spec(6, 2, group="sum", slots=8, k=8), spec(16, 1, slots=33, k=33)):
        one, other = (default(kernel, target) for kernel in kernels(s))
        check(run, s, Sizes(batch=1), (one, other))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("key_dtype", ["float32", None])
@pytest.mark.parametrize("fn", ["stick", "softmax"])
def test_storage_rounding(run: Run, fn: str, key_dtype: str | None, dtype: str) -> None:
    for scale in (0.2, 1.5):
        s = spec(8, 2, dim=64, dtype=dtype, key_dtype=key_dtype, weights=fn, scale=scale)
        found, want = pulled(run, s, Sizes(34, 20, 1), (SMALL, SMALL), exact=False)
        for name, x in found.items():
            assert ratio(x.double() - want[name], want[name]) <= (1e-5 if name == "ds" else BOUNDS[dtype])


def test_only_what_is_asked_for(run: Run) -> None:
    for fn in ("stick", "softmax"):
        s = spec(weights=fn)
        x = draw(s, SIZES, True)
        want = truth(s, x)
        x |= {"w": want["w"], "ds": torch.full_like(x["dw"], math.nan)}
        lowered = lower_kernel(replace(kernels(s)[0], grad_q=None), SMALL)
        run(lowered, x, SIZES.params, mode="exact")
        torch.testing.assert_close(x["ds"], want["ds"], rtol=1e-9, atol=1e-9)
        assert ("keys" in {t.name for t in lowered.steps[0].program.tensors}) == (fn == "stick")


def is_map(node: Node, fn: Fn) -> bool:
    """Whether a node is a map of this function over a tile."""
    return node.op is TileOp.MAP and node.attrs[0] is fn and bool(node.axes)


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
    s, n = spec(4, 2, dtype="bfloat16", scale=2 * SCALE), Sizes(34, 20, 1)
    found, want = pulled(run, s, n, (Schedule(rows=16, block=2), SMALL), exact=False, change=change)
    for name, x in found.items():
        if not ratio(x.double() - want[name], want[name]) <= BOUNDS["bfloat16"]:
            yield name


@pytest.mark.parametrize("change", MISTAKES, ids=lambda change: change.__name__)
def test_mistakes_show(run: Run, change: Change) -> None:
    assert set(MISTAKES[change]) <= set(wrong(run, change))
    assert not list(wrong(run, lambda node, args: None))


def test_refusals_name_the_numbers() -> None:
    one, other = kernels(spec(32, 2))
    with pytest.raises(ScheduleError, match="3 tokens x 8 slots"):
        lower_kernel(one, replace(SMALL, rows=3))
    with pytest.raises(ScheduleError, match="8 rows do not hold the 16 heads"):
        lower_kernel(other, replace(SMALL, rows=8))
    for refused in ({"softmax": True}, {"group": "max"}, {"pool": Pool("overlap", 32, 16, 64)}):
        for kernel in kernels(spec(**refused)):
            with pytest.raises(ScheduleError, match="summed or averaged over a group, and no other"):
                lower_kernel(kernel, SMALL)
