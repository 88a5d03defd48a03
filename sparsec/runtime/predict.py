"""How long kernels take on a target, from the work of their tile programs: a roofline with the parts added up.

time = launches + max(bytes / copy rate, loads / cache rate, (dots + elementwise + ranking) / efficiency / occupancy)

Dots and elementwise work of one program hardly overlap in these kernels, so they add, but for groups of warps that take
turns (``Schedule.has_roles``); memory overlaps with both. One factor per schedule class says how much of the rates its
inner loop reaches; docs/cost.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import add

from sparsec.lower.lowered import Lowered, Step
from sparsec.plan.cost import cost
from sparsec.plan.plan import Kernel
from sparsec.plan.specs import BlockList, GatheredAttention, Selector, TiledAttention
from sparsec.runtime.target import Target
from sparsec.scalar.evaluate import evaluate
from sparsec.tile.language import Access, Node, TileOp
from sparsec.tile.schedule import Schedule
from sparsec.tile.work import Guess, Work, work

OVERLAP = 0.9
"""The share of a token's chosen chunks that its neighbour chose too: 0.87 to 0.94 in trained models."""

EFFICIENCY: dict[tuple[type, str], float] = {
    (TiledAttention, "tvm"): 1.0,
    (GatheredAttention, "tvm"): 0.5,
    (Selector, "tvm"): 0.8,
    (TiledAttention, "triton"): 1.0,
    (GatheredAttention, "triton"): 0.8,
    (Selector, "triton"): 0.8,
}
"""How much of the rates a class reaches; 0.5 where nothing was measured: kernels that are bound by memory anyway."""

CLOCK = 1.4e9
LANES = 128
CACHE, CORE_CACHE = 2.2, 85e9
RANKING = {"triton": 60.0, "tvm": 40.0}
ELEMENTWISE = 20 / 110
LAUNCH = {"triton": 5e-6, "tvm": 1e-5}


@dataclass(frozen=True, slots=True)
class Prediction:
    """The predicted time of one kernel and what it comes from; all in seconds.

    Attributes:
        seconds: the kernel's time.
        floor: its fewest bytes over the target's copy rate: no schedule can be quicker.
        parts: dots, elementwise, ranking, cache and launch, before efficiency and occupancy.
        work: the counts of all its programs.
        occupancy: the share of the processors that have a program to run.
    """

    kernel: str
    seconds: float
    floor: float
    parts: Mapping[str, float]
    work: Work
    occupancy: float


def predict(
    kernel: Kernel, lowered: Lowered, schedule: Schedule, target: Target, dims: Mapping[str, int]
) -> Prediction:
    """The time of a kernel under a schedule at these dims (with ``q_offset``)."""
    params = {name: int(evaluate(value, dims)) for name, value in kernel.params}
    params |= {name: int(evaluate(value, params)) for name, value in lowered.params}
    guess = guesses(kernel, schedule, params)
    each = [_of_rows(step, work(step.program, params, guess)) for step in lowered.steps]
    total = sum(each[1:], each[0])
    formulas = cost(kernel.spec)
    floor = formulas.at(formulas.bytes, params) / target.copy_rate
    parts = _parts(total, target, len(each))
    efficiency = EFFICIENCY.get((type(kernel.spec), target.backend), 0.5)
    occupancy = min(total.programs / len(each) / target.processors, 1.0) or 1.0
    both = max if schedule.has_roles else add
    busy = (both(parts["dots"], parts["elementwise"]) + parts["ranking"]) / efficiency / occupancy
    seconds = parts["launch"] + max(floor, parts["cache"], busy)
    return Prediction(kernel.name, seconds, floor, parts, total, occupancy)


def _of_rows(step: Step, found: Work) -> Work:
    """Without what a tile's axis has beyond its rows, which warps with roles leave out."""
    rows = step.schedule.rows
    share = rows / (1 << (rows - 1).bit_length()) if step.schedule.has_roles else 1.0
    counts = {name: share * getattr(found, name) for name in ("dots", "passes", "elements", "powers", "stored")}
    return replace(found, **counts)


def _parts(total: Work, target: Target, launches: int) -> dict[str, float]:
    gpu = target.backend != "tvm"
    lanes = target.processors * LANES * CLOCK if gpu else target.dot_rate * ELEMENTWISE
    ranking = total.ranked * RANKING["triton" if gpu else "tvm"] / lanes
    return {
        "dots": (total.passes if gpu else total.dots) / target.dot_rate,
        "elementwise": total.elements / lanes,
        "ranking": ranking,
        "cache": total.loaded / (target.copy_rate * CACHE if gpu else target.processors * CORE_CACHE),
        "launch": launches * LAUNCH.get(target.backend, 0.0),
    }


def guesses(kernel: Kernel, schedule: Schedule, params: Mapping[str, int]) -> Guess:
    """What list lengths are taken to be: unions by OVERLAP, tiles of a block list by its mask, given counts as full."""
    spec = kernel.spec
    known: dict[str, float] = {}
    carried = 0.0
    if isinstance(spec, GatheredAttention):
        carried = union_size(spec, schedule, params)
        known[f"{spec.name}_union_counts"] = carried
        known[spec.counts or ""] = float(spec.slots)
        if schedule.has_roles:
            known[f"{spec.name}_used"] = listed_rows(spec, params) / schedule.rows
            known[f"{spec.name}_entries"] = float(params["TQ"] * spec.heads * spec.slots)  # last tokens: all is past
    if isinstance(spec, TiledAttention):
        for piece in spec.pieces:
            if piece.listed is not None:
                known[piece.listed.counts] = listed_tiles(piece.listed, params)
                known[piece.listed.whole or ""] = max(known[piece.listed.counts] - 1, 0.0)

    def guess(node: Node) -> float:
        if node.op is TileOp.CARRY:
            return carried
        access = node.attrs[0] if node.op is TileOp.LOAD else None
        return known.get(access.tensor.name, 0.0) if isinstance(access, Access) else 0.0

    return guess


def listed_rows(spec: GatheredAttention, params: Mapping[str, int]) -> float:
    """Rows of a set of lists, those of a token's own chunk left out where it is known to be among them."""
    return float(params["TQ"] * (spec.heads // spec.kv_heads) * (spec.slots - spec.own_first))


def union_size(spec: GatheredAttention, schedule: Schedule, params: Mapping[str, int]) -> float:
    """Chunks that the tokens of one tile chose together, where neighbours share OVERLAP of their lists."""
    share = {"kv_head": spec.heads // spec.kv_heads, "head": 1, "token": spec.heads // spec.kv_heads}[spec.scope]
    tokens = max(schedule.rows // share, 1)
    exist = max(params["TK"] / spec.chunk / 2, 1.0)
    chosen = min(float(spec.slots), exist)
    return min(chosen * (1 + (tokens - 1) * (1 - OVERLAP)), exist)


def listed_tiles(spec: BlockList, params: Mapping[str, int]) -> float:
    """Key tiles with a visible pair per query tile, on average; every tile where captured tensors decide."""
    import torch

    length = params[spec.length]
    tiles = -(-length // spec.block_k)
    if spec.given is not None:
        lists = -(-params["TQ"] // spec.block_q)
        return spec.slots * lists / tiles if spec.transposed else float(min(spec.slots, tiles))
    if spec.captures:
        return float(tiles)
    starts = range(0, params["TQ"], max(params["TQ"] // 24, spec.block_q))
    j = torch.arange(length)
    found = [_seen(spec, params, torch.arange(i, min(i + spec.block_q, params["TQ"])), j) for i in starts]
    return sum(found) / max(len(found), 1)


def _seen(spec: BlockList, params: Mapping[str, int], rows: object, j: object) -> float:
    import torch

    assert isinstance(rows, torch.Tensor) and isinstance(j, torch.Tensor)
    assert spec.where is not None
    env = {**params, "b": 0, "h": spec.heads // 2, "i": params["q_offset"] + rows[:, None], "j": j[None]}
    visible = torch.as_tensor(evaluate(spec.where, env)).expand(len(rows), len(j)).any(0)
    spare = -len(j) % spec.block_k
    return float(torch.nn.functional.pad(visible, (0, spare)).view(-1, spec.block_k).any(1).sum())
