"""Gradients of the keys and values of tiled attention: every key tile walks the query tiles that see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.pieces import Span, dot_over
from sparsec.lower.scalars import ceil_div, mul
from sparsec.lower.tiled import grad as tiled_grad
from sparsec.lower.tiled import key_walk, split_sum
from sparsec.lower.tiled.grad import Queries
from sparsec.lower.tiled.key_walk import KeyTile
from sparsec.lower.tiled.wide_keys import Shares, shares, wide_keys
from sparsec.plan.grad_specs import TiledGradKV
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Target:
    """One gradient: where it goes, the spans of its heads, and what its sums are multiplied with."""

    tensor: Tensor
    parts: Tensor
    spans: list[Span]
    scale: float


def lower(spec: TiledGradKV, schedule: Schedule) -> Lowered:
    """Both gradients at once; under the order ``apart`` one after the other, with half the registers each."""
    if schedule.order != "apart" or not (spec.grad_k and spec.grad_v):
        return _together(spec, schedule)
    halves = (replace(spec, name=f"{spec.name}_k", grad_v=None), replace(spec, name=f"{spec.name}_v", grad_k=None))
    made = [_together(half, schedule) for half in halves]
    return Lowered(tuple(s for x in made for s in x.steps), tuple(s for x in made for s in x.scratch))


def _together(spec: TiledGradKV, schedule: Schedule) -> Lowered:
    """The main program and, where keys are shared out, the sums of their shares."""
    wide = wide_tiles(spec, schedule)
    main = Step(_main(spec, schedule, wide), schedule)
    if not wide:
        return Lowered((main,))
    outs = [(t, split_sum.parts(spec, t, schedule, wide)) for t in outputs(spec)]
    total = Step(split_sum.program(spec, schedule, wide, outs), schedule)
    return Lowered((main, total), tuple(split_sum.scratch(part, spec) for _, part in outs))


def wide_tiles(spec: TiledGradKV, schedule: Schedule) -> int | str:
    """The number of key tiles that several programs share, or the length all of whose tiles are; 0 without splits."""
    if schedule.splits == 1:
        return 0
    keys = wide_keys(spec.forward.pieces[spec.piece])
    return keys if isinstance(keys, str) else -(-keys // schedule.block)


def outputs(spec: TiledGradKV) -> list[Tensor]:
    """The gradients that are asked for, shaped like keys and values."""
    k, v = tiled_grad.memory(spec.forward, spec.forward.pieces[spec.piece])
    asked = ((spec.grad_k, k), (spec.grad_v, v))
    return [Tensor(name, spec.out_dtype, like.shape) for name, like in asked if name is not None]


def _main(spec: TiledGradKV, schedule: Schedule, wide: int | str) -> Program:
    """One (key tile or share of one, key/value head, batch) per grid point."""
    piece = spec.forward.pieces[spec.piece]
    with tile.Builder() as builder:
        tiles = ceil_div(tile.param(piece.length), schedule.block)
        number, head = key_walk.turn(spec, tiles) if not wide else (tile.program_id(0), tile.program_id(1))
        share = shares(wide, schedule.splits, tiles, number)
        at = key_walk.begin(builder, spec, schedule, share.tile, head)
        targets = _targets(spec, schedule, wide, at)
        totals: list[Node] = [tile.full(0.0, at.w.keys, s.axis) for t in targets for s in t.spans]

        def consume(queries: Queries, masked: Node | bool | None, carried: Sequence[Node]) -> list[Node]:
            return _step(spec, at, queries, masked, carried)

        totals = key_walk.walk(at, share, totals, consume)
        _write(at, targets, share, wide, totals)
        scratch = [t.parts for t in targets] if wide else []
        outs = [] if _all_wide(wide, at) else [t.tensor for t in targets]
        buffers = [*at.w.tensors.values(), *outs, *scratch]
        grid = (share.programs, tile.const(spec.forward.kv_heads), tile.param("B") if piece.batched else tile.const(1))
        return builder.program(spec.name, buffers, tiled_grad.params(spec.forward), grid)


def _all_wide(wide: int | str, at: KeyTile) -> bool:
    """Whether no tile has a program to itself, whatever the lengths."""
    return isinstance(wide, str) or wide * at.w.schedule.block >= (at.piece.size or 2**31)


def _targets(spec: TiledGradKV, schedule: Schedule, wide: int | str, at: KeyTile) -> list[Target]:
    found, outs = [], {t.name: t for t in outputs(spec)}
    for name, spans, scale in ((spec.grad_k, at.w.dims, spec.forward.scale), (spec.grad_v, at.w.values, 1.0)):
        if name is not None:
            found.append(Target(outs[name], split_sum.parts(spec, outs[name], schedule, wide), spans, scale))
    return found


def _step(
    spec: TiledGradKV, at: KeyTile, queries: Queries, masked: Node | bool | None, carried: Sequence[Node]
) -> list[Node]:
    """One tile of queries: totals of the keys' gradient first, if asked for, then of the values'."""
    w, precision = at.w, at.w.schedule.precision
    product = dot_over(w.dims, at.k, lambda d: queries.q[w.dims.index(d)], precision)
    dp = dot_over(w.values, at.v, lambda e: queries.do[w.values.index(e)], precision) if spec.grad_k else None
    found = tiled_grad.pairs(w, at.piece, queries, (at.key, product, dp), masked, None)
    count = len(w.dims) if spec.grad_k else 0
    keys, values = carried[:count], carried[count:]
    made = tiled_grad.accumulate(found.weight, queries.do, w.rows, values, precision) if spec.grad_v else []
    if found.change is None:
        return made
    return [*tiled_grad.accumulate(found.change, queries.q, w.rows, keys, precision), *made]


def _write(at: KeyTile, targets: list[Target], share: Shares, wide: int | str, totals: list[Node]) -> None:
    """Rounded to the outputs, or as they are to this program's place in the scratch."""
    rest = iter(totals)
    for target in targets:
        for span in target.spans:
            value = next(rest)
            value = value if target.scale == 1.0 else mul(value, target.scale)
            _write_span(at, target, span, value, share, wide)


def _write_span(at: KeyTile, target: Target, span: Span, value: Node, share: Shares, wide: int | str) -> None:
    piece = at.piece
    batch = at.batch if piece.batched else tile.const(0)
    place, end = (at.key, at.key_head, span.index()), tile.param(piece.length)
    if share.is_wide is not None:
        limit = tile.apply(Fn.WHERE, share.is_wide, split_sum.shared_keys(wide, at.w.schedule), 0)
        tile.store(target.parts, share.part, batch, *place, value=value, bounds={2: limit})
        end = tile.apply(Fn.WHERE, share.is_wide, 0, end)
        if _all_wide(wide, at):
            return
    value = tile.cast(value, target.tensor.dtype)
    lead = (batch,) if piece.batched else ()
    tile.store(target.tensor, *lead, *place, value=value, bounds={int(piece.batched): end})
