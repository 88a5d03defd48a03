"""What every step of a selector's token tile shares: its axes, tensors, heads and positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparsec.lower import parents
from sparsec.lower.pieces import Span, spans
from sparsec.lower.scalars import add, captured, ceil_div, emit_scores, least, mul, sub
from sparsec.plan.selection.parts import scores_alone
from sparsec.plan.specs import Selector
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Tensor
from sparsec.tile.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Frame:
    """What every step of one token tile shares.

    Attributes:
        group: the axis of the heads that share a selection; None for one head.
        head: the first query head.
        row: the tokens' rows, one of each block of queries that share a list; ``env`` holds their positions and the
            launch parameters.
    """

    spec: Selector
    schedule: Schedule
    rows: Axis
    keys: Axis
    dims: list[Span]
    group: Axis | None
    batch: Node
    head: Node
    key_head: Node
    row: Node
    env: dict[str, Node]
    tensors: dict[str, Tensor]


def sharing(spec: Selector) -> int:
    """The number of query heads that share a selection."""
    if spec.head_weights is not None:
        return spec.heads
    return spec.heads // spec.kv_heads if spec.group is not None else 1


def without_constants(spec: Selector) -> Selector:
    """The spec without predicates that say nothing: eligible always, forced never."""
    eligible, forced = spec.eligible, spec.forced
    return replace(
        spec,
        eligible=None if eligible is not None and eligible.value is True else eligible,
        forced=None if forced is not None and forced.value is False else forced,
    )


def alone(spec: Selector) -> Selector:
    """One head's scores, whatever becomes of them."""
    return replace(scores_alone(spec), group=None)


def params(spec: Selector) -> list[tuple[str, str]]:
    """Launch parameters in order."""
    names = dict.fromkeys(["B", "TQ", "TK", "q_offset", spec.key_length, spec.block_length])
    return [(name, "int32") for name in names]


def tensors(spec: Selector) -> dict[str, Tensor]:
    """Buffers in launch order."""
    units: tuple[str | int, ...] = ("B", "TQ", spec.heads // sharing(spec), spec.slots)
    lead = ["B"] if spec.batched else []
    found = [
        Tensor(spec.q, spec.dtype, ("B", "TQ", spec.heads, spec.dim)),
        Tensor(spec.keys, spec.key_dtype or spec.dtype, (*lead, spec.key_length, spec.kv_heads, spec.dim)),
        *captured(spec.captures).values(),
        Tensor(spec.indices, "int32", units),
    ]
    if spec.parents is not None:
        found += parents.tensors(spec.parents, "TQ")
    if spec.weights is not None and spec.weights_out is not None:
        found.append(Tensor(spec.weights_out, "float32", units))
    if spec.hard_out is not None:
        found.append(Tensor(spec.hard_out, "float32", units))
    if spec.scores_out is not None:
        found.append(Tensor(spec.scores_out, "float32", units))
    return {t.name: t for t in found}


def frame(builder: tile.Builder, spec: Selector, schedule: Schedule) -> Frame:
    """A tile of tokens by ``program_id(0)``, the heads of one selection by 1, the batch by 2."""
    share = sharing(spec)
    rows, keys = builder.axis("m", schedule.rows), builder.axis("n", schedule.block)
    dims = spans(builder, "d", spec.dim, schedule)
    group = builder.axis("g", 1 << (share - 1).bit_length()) if share > 1 else None
    apart, length, offset = spec.query_block, tile.param("TQ"), tile.param("q_offset")
    first = mul(tile.program_id(0), schedule.rows * apart)
    row, head = add(first, mul(tile.iota(rows), apart)), mul(tile.program_id(1), share)
    last = sub(least(add(first, schedule.rows * apart), length), 1)
    env = {name: tile.param(name) for name, _ in params(spec)}
    env |= {"b": tile.program_id(2), "h": head, "i": add(row, offset)}
    env |= {"i_lo": add(first, offset), "i_hi": add(last, offset)}
    key_head = tile.apply(Fn.TRUNCDIV, head, spec.heads // spec.kv_heads)
    return Frame(spec, schedule, rows, keys, dims, group, tile.program_id(2), head, key_head, row, env, tensors(spec))


def biased(f: Frame, scores: Node, block: Node) -> Node:
    """What becomes of the scores of a list's blocks before any is chosen."""
    if f.spec.bias is None:
        return scores
    env = {**f.env, "h": tile.program_id(1), "j": block, "score": scores}
    return emit_scores(f.spec.bias, env, f.tensors, scores)


def lists_of(spec: Selector) -> Node:
    """How many lists of a unit differ: one for every token, or for every block of queries that share it."""
    return ceil_div(tile.param("TQ"), spec.query_block)


def keep(spec: Selector, tensor: Tensor, place: tuple[Node, ...], value: Node, bounds: dict[int, tile.Value]) -> None:
    """Store what tokens have, at a ``place`` (batch, row, …), for all queries that share it."""
    batch, row, *rest = place

    def visit(n: Node) -> Sequence[Node]:
        tile.store(tensor, batch, add(row, n), *rest, value=value, bounds={**bounds, 1: tile.param("TQ")})
        return []

    if spec.query_block == 1:
        tile.store(tensor, *place, value=value, bounds=bounds)
    else:
        tile.loop(0, spec.query_block, 1, [], visit)
