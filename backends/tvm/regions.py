"""A loop body (or the whole program): groups in order, places for what outlives its group, carries updated in place."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.backends.tvm import reductions
from sparsec.backends.tvm.carries import Carried, copy, start, update_in_place
from sparsec.backends.tvm.demands import Stage
from sparsec.backends.tvm.dots import edges, products
from sparsec.backends.tvm.expressions import evaluate
from sparsec.backends.tvm.groups import Group, arrange, reads
from sparsec.backends.tvm.kernel import Kernel
from sparsec.backends.tvm.members import emit_member
from sparsec.backends.tvm.nests import columns_of, rows_of
from sparsec.backends.tvm.point import Point
from sparsec.backends.tvm.sequences import emit_scan, emit_top_insert
from sparsec.backends.tvm.tiles import plan_each
from sparsec.backends.tvm.transposes import emit_turned
from sparsec.tile.language import TileOp
from sparsec.tile.regions import body_of


def emit_region(kernel: Kernel, number: int, carried: Carried) -> None:
    """All statements of a region."""
    stages = [s for _, s in sorted(kernel.found.stages.items()) if kernel.found.regions.home[s.node.serial] == number]
    groups = arrange(stages, kernel.found)
    place = {s.node.serial: at for at, group in enumerate(groups) for s in group.members}
    readers = _readers(kernel, stages)
    copied = [pair for pair in carried if not update_in_place(kernel, pair, carried, place, readers)]
    for at, group in enumerate(groups):
        outlive = {
            s.node.serial
            for s in group.members
            if any(place[r.node.serial] != at for r, _ in readers.get(s.node.serial, ()))
            or any(out is s.node for _, out in carried)
        }
        _emit_group(kernel, group, outlive)
    copy(kernel, copied)


def _readers(kernel: Kernel, stages: Sequence[Stage]) -> dict[int, list[tuple[Stage, bool]]]:
    """Who reads a stored value in this region, and whether pointwise."""
    found: dict[int, list[tuple[Stage, bool]]] = {}
    for stage in stages:
        for read in reads(stage, kernel.found):
            found.setdefault(read.node.serial, []).append((stage, read.pointwise))
    return found


def _emit_group(kernel: Kernel, group: Group, outlive: set[int]) -> None:
    first = group.members[0]
    if group.base == "loop":
        emit_loop(kernel, first)
    elif group.base == "scan":
        emit_scan(kernel, first)
    elif group.base == "top_insert":
        emit_top_insert(kernel, first)
    elif group.base == "turn":
        emit_turned(kernel, first)
    else:
        _emit_nest(kernel, group, outlive)


def _emit_nest(kernel: Kernel, group: Group, outlive: set[int]) -> None:
    members = group.members
    kept = {
        s.node.serial for s in members if s.node.serial in outlive and s.node.axes and s.node.op is not TileOp.REDUCE
    }
    for stage in members:
        if stage.node.serial in kept and stage.node.serial not in kernel.stored:
            kernel.give_place(stage.node, stage.lane)
    reduced = [s for s in members if s.node.op is TileOp.REDUCE]
    for stage in reduced:
        reductions.begin(kernel, stage)
    plan = kernel.found.dots[members[0].node.serial] if group.base == "dot" else None
    tile = plan.tile if plan else plan_each(group.space, group.lane, kernel.found.lanes)
    found = edges(kernel, members[0].node, plan) if plan else None
    with rows_of(kernel, tile) as rows:
        reductions.begin_rows(kernel, reduced, rows)
        for points in columns_of(kernel, tile, rows):
            if plan and found:
                products(kernel, members[0].node, plan, found, points)
            for stage in members:
                emit_member(kernel, stage, points, rows, reduced, kept)
        reductions.end_rows(kernel, reduced, rows)


def emit_loop(kernel: Kernel, stage: Stage) -> None:
    """A counted loop: carries get their places and first values, then the body is a region of its own."""
    node, body = stage.node, body_of(stage.node)
    start(kernel, node)
    lo, hi = (evaluate(kernel, x, Point()) for x in node.args[:2])
    counter = kernel.fresh("n")
    if body.step == 1:
        header, index = (
            f"for {counter} in range({lo}, {hi}):" if lo != "0" else f"for {counter} in range({hi}):",
            counter,
        )
    else:
        first = kernel.bind(lo, "first")
        header = f"for {counter} in range(T.truncdiv({hi} - {first} + {body.step - 1}, {body.step})):"
        index = f"{first} + {counter} * {body.step}"
    with kernel.block(header):
        kernel.remember(body.index, Point(), counter if index == counter else kernel.bind(index, "index"))
        emit_region(kernel, body.number, list(zip(body.carries, body.yields, strict=True)))
